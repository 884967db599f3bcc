"""What masks are worth: JapaneseVowels with and without them. `python -m benchmarks.masks [--json]`.

Both models have the bundled model's spec and are trained from the same seeds on the same batches, padded to the longest
of each. The model without masks counts every padded step as a step, in training too: that is what an LSTM without
lengths learns and computes. Each then answers the 370 test recordings alone, in batches of 16 as
they come, and alone but padded to 58 steps, twice the longest.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise.padding import Steps, pad
from lengthwise_export.architecture.model import ClassifierOutput, SequenceClassifier
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import train
from lengthwise_export.training.options import TrainingOptions

SPEC = Path("model_export/lengthwise_export/specs/japanese-vowels.toml")
PAGE = pages.RESULTS / "masks.md"
ROWS = 16
WIDTH = 58


@dataclasses.dataclass(frozen=True, slots=True)
class Ways:
    """One figure for each of the two ways in which a recording is padded."""

    in_batches: float  # among `ROWS` recordings as they come, padded to the longest of them
    padded: float  # by itself, padded to `WIDTH` steps


@dataclasses.dataclass(frozen=True, slots=True)
class Worth:
    """One model's figures on the test recordings."""

    model: str
    seed: int  # of its training
    accuracy_alone: float  # share of labels that are right when each recording is answered alone, without padding
    accuracy: Ways  # the same share batched and padded
    labels_changed: Ways  # how many labels differ from the unbatched ones
    largest_change: Ways  # of a probability, from the unbatched one


@contextmanager
def without_masks() -> Iterator[None]:
    """Lets every model count each padded step as a step."""
    forward = SequenceClassifier.forward

    def count_all(
        self: SequenceClassifier, steps: Tensor, lengths: Tensor, static: Tensor | None = None
    ) -> ClassifierOutput:
        return forward(self, steps, torch.full_like(lengths, steps.shape[1]), static)

    with mock.patch.object(SequenceClassifier, "forward", count_all):
        yield


def probabilities(
    model: SequenceClassifier, sequences: Sequence[Steps], rows: int = 1, width: int | None = None
) -> np.ndarray:
    """`[sequences, classes]`, answered `rows` at a time, padded to `width` or to the longest of a batch."""
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
    options = TrainingOptions(validation=0.0, epochs=epochs, seed=seed)
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


def page(facts: dict[str, Any], rows: Sequence[Worth], epochs: int) -> str:
    """A line for each training."""
    heads = ("model", "seed", "accuracy unbatched", f"in batches of {ROWS}", f"padded to {WIDTH} steps")
    lines = [
        (
            row.model,
            str(row.seed),
            *(f"{accuracy:.4f}" for accuracy in (row.accuracy_alone, row.accuracy.in_batches, row.accuracy.padded)),
            str(row.labels_changed.in_batches),
            str(row.labels_changed.padded),
            f"{max(row.largest_change.in_batches, row.largest_change.padded):.2g}",
        )
        for row in rows
    ]
    heads += ("labels changed in batches", "padded", "largest change of a probability")
    how = f"`python -m benchmarks.masks`: {epochs} epochs each, the 370 test recordings of JapaneseVowels."
    return pages.page(facts, "With and without masks", how, pages.table(heads, lines))


@click.command(cls=Command)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each model.")
@click.option("--epochs", default=TrainingOptions().epochs, show_default=True, type=click.IntRange(1))
@output.as_json_or_page(PAGE)
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
    output.tell(page(facts, rows, epochs), [dataclasses.asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()
