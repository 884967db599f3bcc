"""Torch beside the exported graph, over 1,000 ragged sequences a model. `python -m benchmarks.exported_models`.

The models are the sound ones of the gallery, called as their users call them, and a covering set of the built-in
architecture's specs. Torch answers batches of 16 sequences of 1 to 60 steps as they come; the graph answers the same
batches, and each sequence alone, through the service's padding and session.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from lengthwise.command import Command
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw
from lengthwise_export.candidate import from_spec
from lengthwise_export.checking.axes import gap
from lengthwise_export.errors import ExportError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.index import TORCH_SOUND, Exhibit
from tests.gallery.trials import run_of
from tests.support import covering

RESULTS = Path("benchmarks/results/exported_models.json")
ROWS = 16
LONGEST = 60

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Model:
    """A model, how torch answers a batch with it, and how it becomes a graph."""

    name: str
    from_spec: bool
    manifest: Manifest
    eager: Callable[[PaddedBatch], Logits]
    build: Callable[[], ModelProto]
    shortest: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen of one model; differences are in units of max(1, a row's largest value).

    Attributes:
        model: Its name.
        built_in: Whether it is of the built-in architecture.
        sequences: How many were answered.
        from_torch: The largest difference between torch and the graph.
        from_alone: The largest between the graph's answer in company and alone.
        same_bits: How many sequences get the same bits in company as alone.
        refused: Why there is no graph.
    """

    model: str
    from_spec: bool
    sequences: int = 0
    from_torch: float | None = None
    from_alone: float | None = None
    same_bits: int | None = None
    refused: str | None = None


def models(only: str = "") -> Iterator[Model]:
    """The gallery's sound models, then the built-in architecture's; those whose names contain a word."""
    yield from (_of_gallery(exhibit) for exhibit in TORCH_SOUND if only in exhibit.name)
    yield from (_of_spec(choice) for choice in covering.covering_set() if only in _name(choice))


def _of_gallery(exhibit: Exhibit) -> Model:
    output = None if exhibit.output is None else str(exhibit.output)
    said = TargetOptions(
        features=exhibit.features,
        vocabulary=exhibit.vocabulary,
        output=output,
        time_first=exhibit.time_first,
        channels_first=exhibit.channels_first,
        second=exhibit.second if exhibit.named else None,
    )
    target = targets.read(exhibit.target, said)
    run = run_of(exhibit)
    manifest = Manifest(
        name="model",
        version=1,
        input=target.steps,
        labels=target.labels,
        task="per-step" if target.per_step else "single-label",
        graph=target.names,
    )
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
    """What of a spec is not the first choice."""
    return ", ".join(f"{key} {value}" for key, value in choice.items() if value != covering.CHOICES[key][0])


def measure(model: Model, count: int) -> Figures:
    """Answers so many sequences in torch, with the graph in company, and with the graph alone."""
    try:
        graph = model.build()
    except ExportError as error:
        return Figures(model.name, model.built_in, refused=str(error).split("\n")[0])
    session = Session(graph.SerializeToString(), model.manifest)
    lengths = np.random.default_rng(0).integers(model.shortest, LONGEST + 1, size=count).tolist()
    sequences = draw(model.manifest, lengths, seed=1)
    in_torch = _in_batches(model.eager, sequences, ROWS)
    company = _in_batches(lambda batch: session.run(batch).logits, sequences, ROWS)
    alone = _in_batches(lambda batch: session.run(batch).logits, sequences, 1)
    return Figures(
        model.name,
        model.built_in,
        sequences=count,
        from_torch=max(map(gap, in_torch, company)),
        from_alone=max(map(gap, alone, company)),
        same_bits=sum(one.tobytes() == other.tobytes() for one, other in zip(alone, company, strict=True)),
    )


def _in_batches(answer: Callable[[PaddedBatch], Logits], sequences: Sequence[Steps], rows: int) -> list[Logits]:
    """Each sequence's logits, `[classes]` or `[length, classes]`."""
    answers: list[Logits] = []
    for start in range(0, len(sequences), rows):
        members = sequences[start : start + rows]
        logits = answer(pad(members))
        answers += [row[: len(steps)] if row.ndim == 2 else row for row, steps in zip(logits, members, strict=True)]
    return answers


def table(rows: Sequence[Figures]) -> Table:
    """The figures for people."""
    shown = Table("model", "from torch", "from alone", "same bits as alone")
    for row in rows:
        if row.refused is not None:
            shown.add_row(row.model, f"no graph: {escape(row.refused)}")
        else:
            shown.add_row(row.model, f"{row.from_torch:.2g}", f"{row.from_alone:.2g}", f"{row.same_bits}")
    return shown


@click.command(cls=Command)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Sequences a model.")
@click.option("--only", default="", help="Models whose name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help=f"Write them, as into {RESULTS}.")
def main(count: int, only: str, as_json: bool, out: Path | None) -> None:
    """Measures how far exported graphs lie from torch, and their answers in company from those alone."""
    torch.set_num_threads(1)
    # A transformer in evaluation takes torch's nested tensors, as it does for its users, and warns of them.
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
    facts = machine.facts()
    chosen = list(models(only))
    rows = [measure(model, count) for model in track(chosen, "models measured", console=Console(stderr=True))]
    if out is not None:
        results = {"machine": facts, "models": [asdict(row) for row in rows]}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(table(rows))


if __name__ == "__main__":
    main()
