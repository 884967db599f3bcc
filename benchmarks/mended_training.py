"""What a mend does to a model that was trained on padded batches. `python -m benchmarks.mended_training`.

An InceptionTime-like model is trained on JapaneseVowels as most are: every recording is padded with zeros to the
longest of the data. The 370 test recordings are then answered padded to that length, padded to the longest of 32,
alone, and by the mended graph.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks import machine, output, pages
from examples.mending import Inception
from lengthwise.commands.command import Command
from lengthwise.decoding import dataset
from lengthwise.decoding.dataset import Record
from lengthwise.padding import pad
from lengthwise.runtime.session import Session
from lengthwise_export.exporting.users_model import from_mend
from lengthwise_export.mending import mended_accuracy
from lengthwise_export.mending.mend_target import mend_target
from lengthwise_export.mending.mended_accuracy import MendAccuracy
from lengthwise_export.options import ExportOptions, TargetOptions
from lengthwise_export.targets import targets

PAGE = pages.RESULTS / "mended_training.md"
LABELS = tuple(str(label) for label in range(1, 10))
ROWS = 32
LONGEST = 64
"""The longest sequence that the mended graph accepts; the recordings have at most 29 steps."""


@dataclass(frozen=True, slots=True)
class TrainedMend:
    """One training and its mend.

    Attributes:
        seed: Its seed.
        accuracy: The accuracy before and after the mend.
        proof: The proof as a sentence.
    """

    seed: int
    accuracy: MendAccuracy
    proof: str


def records(split: str) -> list[Record]:
    """The recordings of a split, `TRAIN` or `TEST`."""
    return list(dataset.read(dataset.locate(f"aeon:JapaneseVowels_{split}")))


def trained(seed: int, epochs: int, train: Sequence[Record], width: int) -> nn.Module:
    """A model that is trained on recordings padded with zeros to this width."""
    torch.manual_seed(seed)
    model = Inception()
    steps = torch.from_numpy(pad([record.steps for record in train], width=width).steps)
    wanted = torch.tensor([LABELS.index(str(record.label)) for record in train])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(ROWS):
            loss = nn.functional.cross_entropy(model(steps[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def measure(seed: int, epochs: int, weights: Path | None = None) -> TrainedMend:
    """Trains one model, mends it and measures both; writes its weights to a file, if one is given."""
    train, test = records("TRAIN"), records("TEST")
    width = max(len(record.steps) for record in (*train, *test))
    model = trained(seed, epochs, train, width)
    if weights is not None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
    target = targets.read(model, TargetOptions(features=12, labels=LABELS), blind=True)
    proved = mend_target(target, max_length=LONGEST)
    source = from_mend(proved, ExportOptions(max_length=LONGEST))
    graph = source.build(source.manifest)
    session = Session(graph.SerializeToString(), source.manifest)
    accuracy = mended_accuracy.measure(target.subject, session, source.manifest, test)
    assert accuracy is not None
    return TrainedMend(seed, accuracy, str(proved.fix.proof))


def page(facts: dict[str, Any], rows: Sequence[TrainedMend], epochs: int) -> str:
    """A line for each seed, and one of the means."""
    heads = ("seed", "padded to a fixed length", "padded to the longest of 32", "alone", "mended")
    accuracies = [
        (row.accuracy.fixed.accuracy, row.accuracy.batches.accuracy, row.accuracy.alone.accuracy, row.accuracy.mended)
        for row in rows
    ]
    known = np.array(accuracies, dtype=np.float64)
    lines = [(str(row.seed), *(f"{value:.4f}" for value in known[place])) for place, row in enumerate(rows)]
    lines.append(("mean", *(f"{value:.4f}" for value in known.mean(axis=0))))
    moved = "; ".join(
        f"seed {row.seed}: {row.accuracy.fixed.moved} of {row.accuracy.answers} from a fixed length, "
        f"{row.accuracy.batches.moved} from the longest of 32, {row.accuracy.alone.moved} from alone"
        for row in rows
    )
    how = (
        "`python -m benchmarks.mended_training`: accuracy on the test recordings of JapaneseVowels of a model that was "
        f"trained {epochs} epochs on recordings padded with zeros to the longest of the data."
    )
    moves = f"Labels that the mend moves: {moved}."
    return pages.page(facts, "Mended after training on padding", how, pages.table(heads, lines), moves)


@click.command(cls=Command)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings.")
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(1))
@click.option("--weights", type=click.Path(dir_okay=False, path_type=Path), help="File for the last one's weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, {PAGE} for one.")
def main(seeds: int, epochs: int, weights: Path | None, as_json: bool, out: Path | None) -> None:
    """Trains models on padded recordings, mends them, and compares their accuracies."""
    torch.set_num_threads(1)
    facts = machine.facts()
    bar = track(range(seeds), "models trained", console=Console(stderr=True))
    rows = [measure(seed, epochs, weights) for seed in bar]
    text = page(facts, rows, epochs)
    if out is not None:
        pages.write(out, text)
    found = [{"seed": row.seed, "proof": row.proof, "accuracy": row.accuracy.as_json()} for row in rows]
    click.echo(json.dumps(found, indent=2) if as_json else text)


if __name__ == "__main__":
    main()
