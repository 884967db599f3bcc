"""Torch beside the exported graph, over 1,000 ragged sequences a model. `python -m benchmarks.exported_models`.

The models are the sound ones of the gallery, called as their users call them, and a covering set of the built-in
architecture's specs. Torch answers batches of 16 sequences of 1 to 60 steps as they come; the graph answers the same
batches, and each sequence alone, through the service's padding and session.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.errors import ExportError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.index import TORCH_SOUND, Exhibit
from tests.gallery.trials import run_of
from tests.support import covering
from tests.support.specs import from_spec

PAGE = pages.RESULTS / "exported_models.md"
ROWS = 16
LONGEST = 60

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Model:
    """A model, how torch answers a batch with it, and how it becomes a graph."""

    name: str
    built_in: bool
    manifest: Manifest
    eager: Callable[[PaddedBatch], Logits]
    build: Callable[[], ModelProto]
    shortest: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one model. Differences are in units of max(1, a row's largest value)."""

    model: str
    built_in: bool  # whether it is of the built-in architecture
    sequences: int = 0  # how many were answered
    from_torch: float | None = None  # the largest difference between torch and the graph
    from_alone: float | None = None  # the largest between the graph's batched and unbatched answers
    same_bits: int | None = None  # how many sequences get the same bits batched and unbatched
    refused: str | None = None  # why there is no graph


def models(only: str = "") -> Iterator[Model]:
    """The gallery's sound models, then the built-in architecture's; those whose names contain a word."""
    yield from (_of_gallery(exhibit) for exhibit in TORCH_SOUND if only in exhibit.name)
    yield from (_of_spec(choice) for choice in covering.covering_set() if only in _name(choice))


def _of_gallery(exhibit: Exhibit) -> Model:
    output = None if exhibit.output is None else str(exhibit.output)
    options = TargetOptions(
        features=exhibit.features,
        vocabulary=exhibit.vocabulary,
        output=output,
        time_first=exhibit.time_first,
        channels_first=exhibit.channels_first,
        second=exhibit.second if exhibit.named else None,
    )
    target = targets.read(exhibit.target, options)
    run = run_of(exhibit)
    manifest = target.describe()
    return Model(
        exhibit.name,
        built_in=False,
        manifest=manifest,
        eager=lambda batch: run(batch.steps, batch.lengths.astype(np.int64)),
        build=lambda: target.build("model", 18),
        shortest=exhibit.shortest,
    )


def _of_spec(choice: covering.Choice) -> Model:
    source = from_spec(covering.build(choice), None)
    if source.reference is None:
        raise ValueError("a built-in model has a reference")
    return Model(
        _name(choice),
        built_in=True,
        manifest=source.manifest,
        eager=source.reference,
        build=lambda: source.build(source.manifest),
    )


def _name(choice: covering.Choice) -> str:
    """The choices of a spec that are not the default."""
    return ", ".join(f"{key} {value}" for key, value in choice.items() if value != covering.CHOICES[key][0])


def measure(model: Model, count: int) -> Figures:
    """Answers `count` sequences in torch, and with the graph, batched and unbatched."""
    try:
        graph = model.build()
    except ExportError as error:
        return Figures(model.name, model.built_in, refused=str(error).split("\n")[0])
    session = Session(graph.SerializeToString(), model.manifest)
    lengths = np.random.default_rng(0).integers(model.shortest, LONGEST + 1, size=count).tolist()
    sequences = draw(model.manifest, lengths, seed=1)
    in_torch = in_batches(model.eager, sequences, ROWS)
    batched, from_alone, same_bits = beside_alone(session, sequences)
    return Figures(
        model.name,
        model.built_in,
        sequences=count,
        from_torch=max(map(relative_difference, in_torch, batched)),
        from_alone=from_alone,
        same_bits=same_bits,
    )


def in_batches(answer: Callable[[PaddedBatch], Logits], sequences: Sequence[Steps], rows: int) -> list[Logits]:
    """Each sequence's logits, `[classes]` or `[length, classes]`."""
    answers: list[Logits] = []
    for start in range(0, len(sequences), rows):
        members = sequences[start : start + rows]
        logits = answer(pad(members))
        answers += [row[: len(steps)] if row.ndim == 2 else row for row, steps in zip(logits, members, strict=True)]
    return answers


def beside_alone(session: Session, sequences: Sequence[Steps]) -> tuple[list[Logits], float, int]:
    """A graph's batched answers, how far they are from its unbatched ones, and how many have the same bits."""
    batched, unbatched = (in_batches(lambda batch: session.run(batch).logits, sequences, rows) for rows in (ROWS, 1))
    same = sum(one.tobytes() == other.tobytes() for one, other in zip(unbatched, batched, strict=True))
    return batched, max(map(relative_difference, unbatched, batched)), same


def page(facts: dict[str, Any], rows: Sequence[Figures]) -> str:
    """A line for each model of the gallery, and one for all specs of the built-in architecture."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if row.built_in:
            continue
        if row.refused is None:
            lines.append((row.model, *_cells([row])))
        else:
            # The line of the model's own code stands before it.
            reason = row.refused.rpartition("`: ")[2].split(". ")[0]
            lines.append((row.model, f"no graph: {reason}", "", ""))
    if built_in := [row for row in rows if row.built_in]:
        lines.append((f"built-in, {len(built_in)} specs that cover all pairs of choices", *_cells(built_in)))
    how = (
        "`python -m benchmarks.exported_models`: the largest differences, in units of max(1, a row's largest value), "
        "and the sequences that get the same bits batched and unbatched."
    )
    heads = ("model", "graph from torch", "batched from unbatched", "the same bits")
    return pages.page(facts, "Torch and the exported graph", how, pages.table(heads, lines))


def _cells(rows: Sequence[Figures]) -> tuple[str, ...]:
    """The figures of some models together."""
    same, all_of_them = sum(row.same_bits or 0 for row in rows), sum(row.sequences for row in rows)
    return (
        f"{max(row.from_torch or 0.0 for row in rows):.2g}",
        f"{max(row.from_alone or 0.0 for row in rows):.2g}",
        "all" if same == all_of_them else f"{same:,} of {all_of_them:,}",
    )


def one_quiet_thread() -> None:
    """Lets torch compute in one thread."""
    torch.set_num_threads(1)
    # A transformer in evaluation takes torch's nested tensors, as it does for its users, and warns of them.
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)


@click.command(cls=Command)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Sequences a model.")
@click.option("--only", default="", help="Models whose name contains this.")
@output.as_json_or_page(PAGE)
def main(count: int, only: str, as_json: bool, out: Path | None) -> None:
    """Measures how far exported graphs are from torch, and batched answers from unbatched ones."""
    one_quiet_thread()
    facts = machine.facts()
    chosen = list(models(only))
    rows = [measure(model, count) for model in track(chosen, "models measured", console=Console(stderr=True))]
    output.tell(page(facts, rows), [asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()
