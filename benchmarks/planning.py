"""Batches as the service forms them beside batches in order of arrival. `python -m benchmarks.planning`.

For each model every server runs on the first core, and the load comes from another one. The servers take turns: the
service, the service in order of arrival with at most 4, 16 and 64 rows a batch, mosec with sorting by hand, which runs
onnxruntime's kernels, and the service once more: what that differs by is noise, also between two processes of one
program, so all are started anew every few turns. The convolutional model is examples/mending.py's Inception, mended.
Of two recordings, mosec sorts by the length of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages, processes
from benchmarks.bench import RunningContender
from benchmarks.contenders import ARRIVAL, MOSEC_SORTED, SERVICE, Contender
from benchmarks.transformer import FEATURES
from benchmarks.workloads import CACHE, Work, exported, japanese_vowels, lognormal
from lengthwise.bench.trial import LoadSpec
from lengthwise.bench.workload import Input, draw_lengths, make_sequences, sent
from lengthwise.commands.command import Command

PAGE = pages.RESULTS / "planning.md"
_LONGEST: Final = 512
_SEQUENCES: Final = 2000


def of_module(name: str, target: str, *options: str, python: Path | str = sys.executable) -> Work:
    """Lengths of median 50 and sigma 0.7, and a torch module, which the lengthwise of this interpreter exports."""
    options = ("--features", str(FEATURES), "--max-length", str(_LONGEST), *options)
    directory = exported(CACHE.parent / f"bench-{name}" / name / "1", target, *options, python=python)
    random = np.random.default_rng(0)
    lengths = draw_lengths("lognormal:50,0.7", _SEQUENCES, _LONGEST, random)
    return Work(name, name, directory, make_sequences(lengths, Input("values", FEATURES), random))


def of_pairs() -> Work:
    """Two recordings a row, whose lengths of median 50 and sigma 0.7 do not depend on each other."""
    one = of_module("recordings", "benchmarks/recordings.py:compared")
    lengths = draw_lengths("lognormal:50,0.7", _SEQUENCES, _LONGEST, np.random.default_rng(1))
    others = make_sequences(lengths, Input("values", FEATURES), np.random.default_rng(1))
    both = zip(one.sequences, others, strict=True)
    return replace(one, sequences=[sent(other, inputs={"first": steps, "second": other}) for steps, other in both])


@dataclass(frozen=True)
class Case:
    """What one line of the table measures: a model in some kernels, under some connections."""

    title: str
    work: Callable[[], Work]
    connections: int
    options: tuple[str, ...] = ()  # of every service


_LSTM = partial(lognormal, 0, _SEQUENCES)
_INT8 = partial(lognormal, 0, _SEQUENCES, precision="int8")
CASES: Mapping[str, Case] = {
    "float32-64": Case("BiLSTM, float32, 64 connections", _LSTM, 64),
    "float32-256": Case("BiLSTM, float32, 256 connections", _LSTM, 256),
    "int8-64": Case("BiLSTM, int8, 64 connections", _INT8, 64),
    "int8-256": Case("BiLSTM, int8, 256 connections", _INT8, 256),
    "vowels": Case("JapaneseVowels, 32 connections", partial(japanese_vowels, 0, _SEQUENCES), 32),
    "onnxruntime": Case("BiLSTM in onnxruntime's kernels, 64 connections", _LSTM, 64, ("--no-recurrent-kernels",)),
    "convolutions": Case(
        "Inception, 64 connections", partial(of_module, "inception", "examples/mending.py:inception", "--mend"), 64
    ),
    "transformer": Case(
        "transformer, 64 connections", partial(of_module, "transformer", "benchmarks/transformer.py:small"), 64
    ),
    "pairs": Case("two recordings in one BiLSTM, 64 connections", of_pairs, 64),
}


def by_arrival(rows: int) -> Contender:
    """The service that forms batches in order of arrival, of so many rows."""
    return replace(
        ARRIVAL,
        name=f"arrival-{rows}",
        title=f"arrival, {rows} rows",
        module=(*ARRIVAL.module[:-1], str(rows), "--max-batch-cost-steps", "65536"),
    )


SORTED_BY_HAND: Final = replace(MOSEC_SORTED, title="mosec, sorted")
CONTENDERS = (
    SERVICE,
    by_arrival(4),
    by_arrival(16),
    by_arrival(64),
    SORTED_BY_HAND,
    replace(SERVICE, name="itself", title="itself"),
)
_TURNS_A_START = 3


def measure(
    case: Case, *, seconds: float, rounds: int, core: int, contenders: Sequence[Contender] = CONTENDERS
) -> dict[str, list[tuple[float, float]]]:
    """The answers a second and the 99th percentile in ms of each turn of each server."""
    work = case.work()
    load = LoadSpec(concurrency=case.connections, seconds=seconds, warmup_seconds=0.3)
    turns: dict[str, list[tuple[float, float]]] = {each.name: [] for each in contenders}
    running: dict[str, RunningContender] = {}
    with ExitStack() as stack:
        for number in track(range(rounds), case.title, console=Console(stderr=True)):
            if number % _TURNS_A_START == 0:
                stack.close()
                for each in contenders:
                    contender = each if each.is_peer else replace(each, module=(*each.module, *case.options))
                    running[each.name] = stack.enter_context(RunningContender(contender, work, [core]))
            first = number % len(contenders)  # none has always the same one before it
            for each in (*contenders[first:], *contenders[:first]):
                figures = running[each.name].measure(load)
                turns[each.name].append((figures["requests_per_second"], figures["latency_ms"]["p99"]))
    return turns


def line(title: str, turns: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """A line of the table: the service, and its ratios to each of the others, within a turn."""
    service = turns[SERVICE.name]
    cells = [title, f"{median(rate for rate, _ in service):,.0f}", f"{median(p99 for _, p99 in service):.3g}"]
    for name, others in turns.items():
        if name != SERVICE.name:
            pairs = list(zip(service, others, strict=True))
            rates = median(one[0] / other[0] for one, other in pairs)
            tails = median(one[1] / other[1] for one, other in pairs)
            cells.append(f"{rates:.2f}, {tails:.2f}")
    return cells


def earlier_lines(page: Path, facts: Mapping[str, Any]) -> list[list[str]]:
    """The lines of a page that was measured at this commit today: further models are added to them."""
    if not page.exists() or page.read_text("utf-8").splitlines()[0] != pages.stamp(facts):
        return []
    return [row.strip("| ").split(" | ") for row in pages.first_table(page).splitlines()[2:]]


@click.command(cls=Command)
@click.option("--case", "cases", type=click.Choice([*CASES]), multiple=True, help="Only this one. [default: all]")
@click.option("--seconds", type=click.FloatRange(0.2), default=1.5, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of every server.")
@click.option("--out", type=output.PagePath(dir_okay=False), default=PAGE, show_default=True, help="Page.")
def main(cases: Sequence[str], seconds: float, rounds: int, out: Path) -> None:
    """Measures the batches of the service beside batches in order of arrival."""
    facts = machine.facts()
    server = processes.first_core()
    chosen = [CASES[name] for name in cases or CASES]
    lines = earlier_lines(out, facts)
    for each in chosen:
        lines.append(line(each.title, measure(each, seconds=seconds, rounds=rounds, core=server)))
        click.echo(" | ".join(lines[-1]), err=True)
    heads = ["model", "requests/s", "p99 ms", *(f"over {each.title}" for each in CONTENDERS[1:])]
    table = pages.table(heads, lines)
    text = (
        "`python -m benchmarks.planning`: lognormal lengths (median 50, sigma 0.7), JapaneseVowels its own; one core; "
        f"medians of {rounds} turns of {seconds:g} s, all started anew every {_TURNS_A_START}. Behind each other "
        "server: the service's throughput over its, and the service's 99th percentile over its, within a turn."
    )
    pages.write(out, pages.page(facts, "Which sequences run together", text, table))
    click.echo(table)


if __name__ == "__main__":
    main()
