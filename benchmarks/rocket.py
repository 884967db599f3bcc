"""Accuracy of rocket models on small data sets, beside aeon's MiniRocket and ridge. `python -m benchmarks.rocket`.

Each model is trained as `lengthwise train` does with a spec that says `kind = "rocket"` and nothing else. aeon's
`MiniRocketClassifier` gets the same sequences, padded with zeros to the longest one of the training set where their
lengths differ (longer test sequences are cut there), because it takes equal lengths. The seconds are processor time of
the training, so that they mean something on a busy machine too; aeon compiles its code before they begin.

The data sets are those that come in the packages aeon and, if it is installed, sktime.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.decoding import dataset
from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import rocket
from lengthwise_export.training.batches import examples
from lengthwise_export.training.options import TrainingOptions

PAGE = pages.RESULTS / "rocket.md"
AEON = (
    "JapaneseVowels",
    "PickupGestureWiimoteZ",
    "BasicMotions",
    "ItalyPowerDemand",
    "GunPoint",
    "ArrowHead",
    "OSULeaf",
    "ACSF1",
)
SKTIME = ("PLAID",)


@dataclass(frozen=True, slots=True)
class Training:
    """One training.

    Attributes:
        data: The data set.
        model: `rocket`, or `aeon`.
        seed: Its seed.
        accuracy: The accuracy on the test set.
        loss: The mean log loss on the test set; None where the model has no probabilities.
        left_out: The accuracy on the training set by answers that were left out; None where there are none.
        seconds: Processor seconds of the training.
    """

    data: str
    model: str
    seed: int
    accuracy: float
    loss: float | None
    left_out: float | None
    seconds: float


def location(name: str, split: str) -> str | None:
    """Where a data set is; None if its package is not installed."""
    if name in AEON:
        return f"aeon:{name}_{split}"
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "datasets" / "data" / name / f"{name}_{split}.ts")


def records(name: str) -> tuple[list[Record], list[Record]] | None:
    """The training and the test set; None if they are not installed."""
    places = [location(name, split) for split in ("TRAIN", "TEST")]
    if None in places:
        return None
    train, test = (list(dataset.read(dataset.locate(str(place)))) for place in places)
    return train, test


def spec_of(train: Sequence[Record]) -> Spec:
    """A spec that says only what is required, and which kind of model."""
    longest = max(len(record.steps) for record in train)
    labels = sorted({str(record.label) for record in train})
    return Spec.from_table(
        {
            "input": {"features": train[0].steps.shape[1], "max_length": max(1024, longest), "long": "head"},
            "model": {"kind": "rocket"},
            "output": {"labels": labels},
        }
    )


def of_rocket(name: str, seed: int, train: Sequence[Record], test: Sequence[Record]) -> Training:
    """A rocket model of this project."""
    spec = spec_of(train)
    held_out = examples(test, spec)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        result = rocket.train(spec, train, TrainingOptions(seed=seed), Path(folder))
        seconds = time.process_time() - begun
    scores = rocket.evaluate(result.model, held_out, spec)
    return Training(name, "rocket", seed, scores.accuracy, scores.loss, result.left_out.accuracy, seconds)


def of_aeon(name: str, seed: int, train: Sequence[Record], test: Sequence[Record]) -> Training:
    """The MiniRocket and ridge of aeon."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    width = max(9, *(len(record.steps) for record in train))
    model = MiniRocketClassifier(random_state=seed)
    values, labels = _rectangle(train, width)
    begun = time.process_time()
    model.fit(values, labels)
    seconds = time.process_time() - begun
    values, labels = _rectangle(test, width)
    accuracy = float((model.predict(values) == labels).mean())
    return Training(name, "aeon", seed, accuracy, None, None, seconds)


def _rectangle(given: Sequence[Record], width: int) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Sequences as aeon takes them, `[rows, features, width]`, and their labels."""
    values = np.zeros((len(given), given[0].steps.shape[1], width), dtype=np.float32)
    for row, record in zip(values, given, strict=True):
        steps = record.steps[:width]
        row[:, : len(steps)] = steps.T
    return values, np.array([str(record.label) for record in given])


def measure(names: Sequence[str], seeds: int, models: Sequence[str]) -> Iterator[Training]:
    """All trainings, one after the other."""
    for name in names:
        found = records(name)
        if found is None:
            click.echo(f"{name}: left out, because sktime is not installed", err=True)
            continue
        train, test = found
        if "aeon" in models:  # numba compiles here
            of_aeon(name, 0, train, test[:1])
        for seed in range(seeds):
            for model in models:
                yield (of_rocket if model == "rocket" else of_aeon)(name, seed, train, test)


def page(facts: dict[str, Any], rows: Sequence[Training], seeds: int) -> str:
    """A line for each data set."""
    heads = ("data", "rocket", "left out", "log loss", "seconds", "aeon's MiniRocket + ridge", "seconds")
    lines = []
    for name in dict.fromkeys(row.data for row in rows):
        ours = [row for row in rows if row.data == name and row.model == "rocket"]
        theirs = [row for row in rows if row.data == name and row.model == "aeon"]
        left_out = np.mean([row.left_out for row in ours if row.left_out is not None])
        loss = np.mean([row.loss for row in ours if row.loss is not None])
        lines.append(
            (name, _spread(ours), f"{left_out:.3f}", f"{loss:.3f}", _seconds(ours), _spread(theirs), _seconds(theirs))
        )
    how = (
        f"`python -m benchmarks.rocket --seeds {seeds}`: accuracy on the test set, mean and standard deviation of "
        f"{seeds} seeds; *left out* is the accuracy that the training expects, from answers to training sequences that "
        "were left out; *log loss* is that of the calibrated probabilities on the test set; *seconds* is the "
        "processor time of one training, without compiling aeon's code. aeon's estimator gets sequences padded with "
        "zeros to one length."
    )
    return pages.page(facts, "Rocket models", how, pages.table(heads, lines))


def _spread(rows: Sequence[Training]) -> str:
    accuracies = [row.accuracy for row in rows]
    return f"{np.mean(accuracies):.3f} ± {np.std(accuracies):.3f}" if rows else "-"


def _seconds(rows: Sequence[Training]) -> str:
    return f"{np.median([row.seconds for row in rows]):.1f}" if rows else "-"


@click.command(cls=Command)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Trainings of each model.")
@click.option("--data", multiple=True, type=click.Choice([*AEON, *SKTIME]), help="Only these; may be repeated.")
@click.option("--no-aeon", is_flag=True, help="Leave aeon's classifier out: its code is compiled for a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, {PAGE} for one.")
def main(seeds: int, data: tuple[str, ...], no_aeon: bool, as_json: bool, out: Path | None) -> None:
    """Trains rocket models and aeon's MiniRocket, and compares their accuracies."""
    torch.set_num_threads(1)
    facts = machine.facts()
    models = ["rocket"] if no_aeon else ["rocket", "aeon"]
    names = data or (*AEON, *SKTIME)
    trainings = measure(names, seeds, models)
    count = len(names) * seeds * len(models)
    rows = list(track(trainings, "models trained", total=count, console=Console(stderr=True)))
    text = page(facts, rows, seeds)
    if out is not None:
        pages.write(out, text)
    click.echo(json.dumps([asdict(row) for row in rows], indent=2) if as_json else text)


if __name__ == "__main__":
    main()
