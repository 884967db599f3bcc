"""What masks are worth: JapaneseVowels with and without them. `python -m benchmarks.masks [--json]`.

Both models are of the bundled one's spec, trained alike. The one without masks is told of every batch that each padded
step is a step, while it is trained too: that is what an LSTM without lengths learns and computes. Each then answers the
370 test recordings alone, and padded to 58 steps, twice the longest.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model_export import train
from model_export.model import Answer, SequenceClassifier
from model_export.spec import Spec
from service import dataset
from service.command import Command
from service.dataset import Record
from service.padding import pad

SPEC = Path("model_export/specs/japanese-vowels.toml")
WIDTH = 58


@dataclasses.dataclass(frozen=True, slots=True)
class Worth:
    """One model's figures on the test recordings.

    Attributes:
        model: Which.
        accuracy_alone: Share of labels that are right when each recording is answered alone.
        accuracy_padded: Likewise padded to `WIDTH` steps.
        labels_changed: How many labels differ between the two.
        largest_change: Of a probability, between the two.
    """

    model: str
    accuracy_alone: float
    accuracy_padded: float
    labels_changed: int
    largest_change: float


@contextmanager
def without_masks() -> Iterator[None]:
    """Lets every model take each padded step for a step."""
    forward = SequenceClassifier.forward

    def told_nothing(self: SequenceClassifier, steps: Tensor, lengths: Tensor) -> Answer:
        return forward(self, steps, torch.full_like(lengths, steps.shape[1]))

    with mock.patch.object(SequenceClassifier, "forward", told_nothing):
        yield


def probabilities(model: SequenceClassifier, records: list[Record], width: int | None) -> np.ndarray:
    """`[records, classes]`, each recording answered by itself, padded to a width or not at all."""
    rows = []
    with torch.inference_mode():
        for record in records:
            batch = pad([record.steps], multiple=1, width=width)
            logits = model(torch.from_numpy(batch.steps), torch.from_numpy(batch.lengths).long()).logits
            rows.append(logits.softmax(dim=1).numpy()[0])
    return np.stack(rows)


def measure(name: str, records: list[Record], held_out: list[Record], epochs: int) -> Worth:
    """Trains a model and answers the test recordings both ways."""
    spec = Spec.read(SPEC)
    options = train.Options(validation=0.0, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        model = train.train(spec, records, options, Path(folder)).model
    alone, padded = (probabilities(model, held_out, width) for width in (None, WIDTH))
    labels = np.array([spec.output.labels.index(str(record.label)) for record in held_out])
    return Worth(
        model=name,
        accuracy_alone=float((alone.argmax(axis=1) == labels).mean()),
        accuracy_padded=float((padded.argmax(axis=1) == labels).mean()),
        labels_changed=int((alone.argmax(axis=1) != padded.argmax(axis=1)).sum()),
        largest_change=float(np.abs(alone - padded).max()),
    )


@click.command(cls=Command)
@click.option("--epochs", default=train.Options().epochs, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(epochs: int, as_json: bool) -> None:
    """Trains both models and shows what padding does to their answers."""
    torch.set_num_threads(1)
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TRAIN")))
    held_out = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    with Console(stderr=True).status("training with masks"):
        rows = [measure("with masks", records, held_out, epochs)]
    with Console(stderr=True).status("training without masks"), without_masks():
        rows.append(measure("without masks", records, held_out, epochs))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    table = Table("model", "alone", f"padded to {WIDTH}", f"labels changed of {len(held_out)}", "largest change")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.accuracy_alone:.4f}",
            f"{row.accuracy_padded:.4f}",
            str(row.labels_changed),
            f"{row.largest_change:.2g}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
