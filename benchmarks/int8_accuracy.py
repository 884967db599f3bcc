"""What int8 does to the answers of trained models, on several data sets: `python -m benchmarks.int8_accuracy`.

Each model is trained here, several times from other random weights, and every test sequence is answered at fp32 and at
int8 as they are served on this machine's CPU. The recurrent layers' answers do not depend on the machine. Nothing is
chosen on the test sequences, and no data is used to convert a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise.padding import batches
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.onnx_graphs import precision
from lengthwise_export.training import train
from lengthwise_export.training.options import TrainingOptions
from tests.support.specs import from_spec

PAGE = pages.RESULTS / "int8_accuracy.md"
_SPECS: Final = Path(__file__).parent / "specs"
_OWN_SPECS: Final = Path(__file__).parent.parent / "model_export" / "lengthwise_export" / "specs"
MODELS: Final = (
    ("JapaneseVowels", _OWN_SPECS / "japanese-vowels.toml", 40),
    ("PickupGestureWiimoteZ", _OWN_SPECS / "pickup-gesture.toml", 150),
    ("PickupGestureWiimoteZ", _SPECS / "pickup-gesture-lstm.toml", 60),
    ("ItalyPowerDemand", _SPECS / "italy-power-demand.toml", 40),
)
"""Data sets in aeon's wheel, each with the spec of a model and the epochs of a training."""
_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Int8Answers:
    """The answers of one trained model at fp32 and at int8."""

    data: str
    model: str
    seed: int  # of its training
    sequences: int  # test sequences
    accuracy: float  # share of right answers at fp32
    int8_accuracy: float  # the same at int8
    changed: int  # sequences with another label at int8
    gained: int  # of these, the ones whose label became right, less those whose label became wrong
    largest: float  # the largest difference of a probability
    median: float  # the median, over the sequences, of the largest difference of a probability


def measured(data: str, spec: Path, seed: int, *, epochs: int, console: Console) -> Int8Answers:
    """Trains one model, and compares its answers."""
    described = Spec.read(spec)
    records, tests = (list(dataset.read(dataset.locate(f"aeon:{data}_{part}"))) for part in ("TRAIN", "TEST"))
    options = TrainingOptions(epochs=epochs, validation=0.0, seed=seed)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as shown:
        task = shown.add_task(f"{data}, seed {seed}", total=epochs)
        train.train(described, records, options, Path(folder), on_epoch=lambda _: shown.advance(task))
        source = from_spec(described, Path(folder) / WEIGHTS_FILE)
    exact = source.build(source.manifest)
    described_at_int8 = precision.manifest_at(source.manifest, "int8")
    one = _probabilities(Session(exact.SerializeToString(), source.manifest), source.manifest, tests)
    eight = Session(precision.convert(exact, "int8").SerializeToString(), described_at_int8)
    return _compared(data, described, seed, source.manifest, tests, one, _probabilities(eight, source.manifest, tests))


def _probabilities(session: Session, manifest: Manifest, records: Sequence[Record]) -> NDArray[np.float64]:
    """`[sequences, classes]`, in the order of the records."""
    order = np.argsort([len(record.steps) for record in records], kind="stable")
    members = [records[index].steps for index in order]
    logits = np.concatenate(
        [session.run(batch).logits for batch in batches(members, multiple=manifest.width_multiple, most_rows=_ROWS)]
    ).astype(np.float64)
    found = np.empty_like(logits)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found[order] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _compared(
    data: str,
    spec: Spec,
    seed: int,
    manifest: Manifest,
    tests: Sequence[Record],
    exact: NDArray[np.float64],
    rounded: NDArray[np.float64],
) -> Int8Answers:
    labels = np.array([manifest.labels.index(str(record.label)) for record in tests])
    before, after = exact.argmax(axis=1), rounded.argmax(axis=1)
    moved = np.abs(exact - rounded).max(axis=1)
    return Int8Answers(
        data=data,
        model=f"{spec.model.rnn.upper()}, {spec.model.layers} x {spec.model.hidden}"
        + (", both directions" if spec.model.bidirectional else "")
        + (", behind convolutions" if spec.model.conv else ""),
        seed=seed,
        sequences=len(tests),
        accuracy=float((before == labels).mean()),
        int8_accuracy=float((after == labels).mean()),
        changed=int((before != after).sum()),
        gained=int((after == labels).sum() - (before == labels).sum()),
        largest=float(moved.max()),
        median=float(np.median(moved)),
    )


def cells(found: Sequence[Int8Answers]) -> tuple[str, ...]:
    """A line of the table: one model, trained several times."""
    first, sequences = found[0], sum(each.sequences for each in found)
    accuracy, at_int8 = (
        sum(getattr(each, name) * each.sequences for each in found) / sequences
        for name in ("accuracy", "int8_accuracy")
    )
    return (
        first.data,
        first.model,
        f"{len(found)} x {first.sequences}",
        f"{accuracy:.4f}",
        f"{at_int8:.4f}",
        str(sum(each.changed for each in found)),
        f"{max(each.largest for each in found):.2g}",
        f"{np.median([each.median for each in found]):.1g}",
    )


def by_model(found: Sequence[Int8Answers]) -> Iterator[list[Int8Answers]]:
    """The figures of each model together."""
    for data, model in dict.fromkeys((each.data, each.model) for each in found):
        yield [each for each in found if (each.data, each.model) == (data, model)]


@click.command(cls=Command)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each model.")
@click.option("--epochs", type=click.IntRange(1), help="Of each training, instead of each model's own number.")
@click.option(
    "--data", multiple=True, type=click.Choice(sorted({name for name, *_ in MODELS})), help="Only these sets."
)
@click.option("--out", default=PAGE, show_default=True, type=output.PagePath(dir_okay=False), help="Page.")
def main(seeds: int, epochs: int | None, data: tuple[str, ...], out: Path) -> None:
    """Compares the answers of trained models at int8 with those at fp32."""
    torch.set_num_threads(1)
    facts, console = machine.facts(), Console(stderr=True)
    found = [
        measured(name, spec, seed, epochs=epochs or own_epochs, console=console)
        for name, spec, own_epochs in MODELS
        for seed in range(seeds)
        if not data or name in data
    ]
    heads = (
        "data set",
        "model",
        "trainings x test sequences",
        "accuracy at fp32",
        "at int8",
        "labels changed",
        "largest difference of a probability",
        "median",
    )
    how = (
        f"`python -m benchmarks.int8_accuracy`: each model is trained {seeds} times from other random weights; the "
        "median is of the largest difference of each sequence."
    )
    text = pages.page(facts, "Answers at int8", how, pages.table(heads, map(cells, by_model(found))))
    output.tell(text, out=out)


if __name__ == "__main__":
    main()
