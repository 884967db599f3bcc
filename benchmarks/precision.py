"""What fp16 and int8 do to the bundled model's accuracy, labels, size and time. `python -m benchmarks.precision`.

Every test recording of JapaneseVowels is answered at each precision as it is served on this machine's CPU: unbatched,
which at fp32 and fp16 gives the same bits as batched. Times are processor time of one thread, and the precisions take
turns in every round. fp16 is meant for GPUs; here its arithmetic is that of float32.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

import click
import numpy as np
import onnx
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.padding import Steps, batches, pad
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest, Precision
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from lengthwise_export.exporting import accuracy
from lengthwise_export.onnx_graphs import precision

PAGE = pages.RESULTS / "precision.md"
DIRECTORY = bundled_models() / "japanese-vowels" / "1"
DATA = "aeon:JapaneseVowels_TEST"
ROWS: Final = 16
"""Sequences of a batch, sorted by length, where a model allows batches."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One precision."""

    precision: Precision
    accuracy: float  # share of the recordings with their right label
    labels_changed: int  # recordings with another label than at fp32
    largest_difference: float  # of a logit, from fp32
    graph_bytes: int  # of the graph
    alone_us_a_step: float  # processor time of an unbatched recording per step; the median of the rounds
    together_us_a_step: float | None  # the same in sorted batches per valid step; None where rows run one at a time


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph at one precision, ready to run."""

    precision: Precision
    manifest: Manifest
    session: Session
    graph_bytes: int

    def seconds(self, members: Sequence[Steps], rows: int) -> float:
        """Processor time of running all of them, `rows` at a time."""
        padded = list(batches(members, multiple=self.manifest.width_multiple, most_rows=rows))
        start = time.thread_time()
        for batch in padded:
            self.session.run(batch)
        return time.thread_time() - start

    def accuracy(self, records: Sequence[dataset.Record]) -> float:
        """Share of the recordings with their right label, each run by itself."""
        right = 0
        for record in records:
            logits = self.session.run(pad([record.steps], multiple=self.manifest.width_multiple)).logits[0]
            right += self.manifest.labels[int(np.argmax(logits))] == record.label
        return right / len(records)


def candidates() -> list[Candidate]:
    """The bundled model at each precision, fp32 first."""
    manifest, graph = Manifest.read(DIRECTORY), onnx.load(DIRECTORY / GRAPH_FILE)
    found = []
    for name in get_args(Precision):
        described = precision.manifest_at(manifest, name)
        data = precision.convert(graph, name).SerializeToString()
        found.append(Candidate(name, described, Session(data, described), len(data)))
    return found


def measured(records: Sequence[dataset.Record], rounds: int) -> list[Asked]:
    """Asks every precision."""
    asked = candidates()
    exact = asked[0]
    members = sorted((record.steps for record in records), key=len)
    steps = sum(map(len, members))
    alone: dict[str, list[float]] = {each.precision: [] for each in asked}
    together: dict[str, list[float]] = {each.precision: [] for each in asked if each.manifest.max_batch_rows != 1}
    for _ in track(range(rounds), "measuring", console=Console(stderr=True)):
        for each in asked:
            alone[each.precision].append(each.seconds(members, 1))
            if each.precision in together:
                together[each.precision].append(each.seconds(members, ROWS))
    results = []
    for each in asked:
        changes = accuracy.changed_labels(exact.session, each.session, each.manifest, members)
        beside = together.get(each.precision)
        results.append(
            Asked(
                precision=each.precision,
                accuracy=each.accuracy(records),
                labels_changed=changes.changed,
                largest_difference=changes.difference,
                graph_bytes=each.graph_bytes,
                alone_us_a_step=1e6 * median(alone[each.precision]) / steps,
                together_us_a_step=None if beside is None else 1e6 * median(beside) / steps,
            )
        )
    return results


def cells(each: Asked) -> tuple[str, ...]:
    """A line of the table."""
    together = each.together_us_a_step
    return (
        each.precision,
        f"{each.accuracy:.4f}",
        str(each.labels_changed),
        f"{each.largest_difference:.2g}",
        f"{each.graph_bytes / 1000:.0f} KB",
        f"{each.alone_us_a_step:.1f} us",
        "never" if together is None else f"{together:.1f} us",
    )


def page(facts: dict[str, Any], results: Sequence[Asked], count: int, rounds: int) -> str:
    """The figures as a page."""
    how = f"`python -m benchmarks.precision`: {count} test recordings of JapaneseVowels, medians of {rounds} rounds."
    heads = (
        "precision",
        "accuracy",
        "labels changed",
        "largest difference of a logit",
        "graph",
        "time per step, unbatched",
        f"in sorted batches of {ROWS}",
    )
    return pages.page(facts, "Precisions of the bundled model", how, pages.table(heads, map(cells, results)))


@click.command(cls=Command)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Times that all are run.")
@click.option("--out", default=PAGE, show_default=True, type=output.PagePath(dir_okay=False), help="Page.")
def main(rounds: int, out: Path) -> None:
    """Measures the bundled model at fp32, fp16 and int8."""
    facts = machine.facts()
    records = list(dataset.read(dataset.locate(DATA)))
    text = page(facts, measured(records, rounds), len(records), rounds)
    output.tell(text, out=out)


if __name__ == "__main__":
    main()
