"""What masks are worth: JapaneseVowels with and without them. `python -m benchmarks.masks [--json]`.

Both models are of the bundled one's spec, trained alike from the same seeds on the same batches, padded to the longest
of each. The one without masks is told of every batch that each padded step is a step, while it is trained too: that is
what an LSTM without lengths learns and computes. Each then answers the 370 test recordings alone, in batches of 16 as
they come, and alone but padded to 58 steps, twice the longest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from lengthwise.command import Command
from lengthwise.decoding import dataset
from lengthwise.decoding.dataset import Record
from lengthwise.padding import Steps, pad
from lengthwise_export.architecture.model import ClassifierOutput, SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import train

SPEC = Path("model_export/lengthwise_export/specs/japanese-vowels.toml")
RESULTS = Path("benchmarks/results/masks.json")
ROWS = 16
WIDTH = 58


@dataclasses.dataclass(frozen=True, slots=True)
class Ways:
    """One figure for each of the two ways in which a recording is padded.

    Attributes:
        in_batches: Among `ROWS` recordings as they come, padded to the longest of them.
        padded: By itself, padded to `WIDTH` steps.
    """

    in_batches: float
    padded: float


@dataclasses.dataclass(frozen=True, slots=True)
class Worth:
    """One model's figures on the test recordings.

    Attributes:
        model: Which.
        seed: Of its training.
        accuracy_alone: Share of labels that are right when each recording is answered alone, without padding.
        accuracy: Likewise in company and padded.
        labels_changed: How many labels differ from those alone.
        largest_change: Of a probability, from that alone.
    """

    model: str
    seed: int
    accuracy_alone: float
    accuracy: Ways
    labels_changed: Ways
    largest_change: Ways


@contextmanager
def without_masks() -> Iterator[None]:
    """Lets every model take each padded step for a step."""
    forward = SequenceClassifier.forward

    def told_nothing(self: SequenceClassifier, steps: Tensor, lengths: Tensor) -> ClassifierOutput:
        return forward(self, steps, torch.full_like(lengths, steps.shape[1]))

    with mock.patch.object(SequenceClassifier, "forward", told_nothing):
        yield


def probabilities(
    model: SequenceClassifier, sequences: Sequence[Steps], rows: int = 1, width: int | None = None
) -> np.ndarray:
    """`[sequences, classes]`, answered so many at a time, padded to a width or to the longest of them."""
    answers = []
    with torch.inference_mode():
        for start in range(0, len(sequences), rows):
            batch = pad(sequences[start : start + rows], multiple=1, width=width)
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
            answers.append(logits.softmax(dim=1).numpy())
    return np.concatenate(answers)


def measure(name: str, seed: int, records: list[Record], held_out: list[Record], epochs: int) -> Worth:
    """Trains a model and answers the test recordings in every way."""
    spec = Spec.read(SPEC)
    options = train.TrainingOptions(validation=0.0, epochs=epochs, seed=seed)
    sequences = [record.steps for record in held_out]
    labels = np.array([spec.output.labels.index(str(record.label)) for record in held_out])
    with tempfile.TemporaryDirectory() as folder, without_masks() if name == "without masks" else nullcontext():
        model = train.train(spec, records, options, Path(folder)).model
        alone = probabilities(model, sequences)
        ways = (probabilities(model, sequences, rows=ROWS), probabilities(model, sequences, width=WIDTH))
    chosen = alone.argmax(axis=1)
    return Worth(
        model=name,
        seed=seed,
        accuracy_alone=float((chosen == labels).mean()),
        accuracy=Ways(*(float((way.argmax(axis=1) == labels).mean()) for way in ways)),
        labels_changed=Ways(*(int((way.argmax(axis=1) != chosen).sum()) for way in ways)),
        largest_change=Ways(*(float(np.abs(way - alone).max()) for way in ways)),
    )


def table(rows: Sequence[Worth], count: int) -> Table:
    """The figures for people."""
    shown = Table(
        "model", "seed", "alone", f"in {ROWS}s", f"padded to {WIDTH}", f"labels of {count} changed", "largest change"
    )
    for row in rows:
        shown.add_row(
            row.model,
            str(row.seed),
            f"{row.accuracy_alone:.4f}",
            f"{row.accuracy.in_batches:.4f}",
            f"{row.accuracy.padded:.4f}",
            f"{row.labels_changed.in_batches}, {row.labels_changed.padded}",
            f"{row.largest_change.in_batches:.2g}, {row.largest_change.padded:.2g}",
        )
    return shown


@click.command(cls=Command)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each model.")
@click.option("--epochs", default=train.TrainingOptions().epochs, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help=f"Write them, as into {RESULTS}.")
def main(seeds: int, epochs: int, as_json: bool, out: Path | None) -> None:
    """Trains both models and shows what padding does to their answers."""
    torch.set_num_threads(1)
    facts = machine.facts()
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TRAIN")))
    held_out = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    models = list(itertools.product(("with masks", "without masks"), range(seeds)))
    console = Console(stderr=True)
    rows = [
        measure(name, seed, records, held_out, epochs)
        for name, seed in track(models, "models trained", console=console)
    ]
    results = {"machine": facts, "epochs": epochs, "models": [dataclasses.asdict(row) for row in rows]}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(results["models"], indent=2))
    else:
        Console().print(table(rows, len(held_out)))


if __name__ == "__main__":
    main()
