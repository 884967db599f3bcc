"""Policies for missing values, compared. `python -m benchmarks.missing_values`.

JapaneseVowels with values taken away in two ways, training and test alike:

| way | means |
|---|---|
| at random | 3 values in 10 |
| informing | each speaker lacks two coefficients of its own in half of its steps: a missing value names it |

An MLP a step (`rnn = "none"`) and an LSTM are trained on each with the policies of a spec, from the same seeds.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training import train
from lengthwise_export.training.batches import make_examples
from lengthwise_export.training.options import TrainingOptions
from lengthwise_export.training.scores import evaluate

PAGE = pages.RESULTS / "missing_values.md"
POLICIES: Final = ("zero", "mean", "indicator")
MODELS: Final = ("none", "lstm")
FEATURES = 12

Way = Literal["at random", "informing"]
WAYS: Final[tuple[Way, ...]] = ("at random", "informing")


@dataclass(frozen=True, slots=True)
class Trained:
    """One training: its accuracy is the share of right labels among the test recordings."""

    way: Way
    rnn: str
    policy: str
    seed: int
    accuracy: float


def thinned(records: Sequence[Record], way: Way, seed: int) -> list[Record]:
    """The records with values taken away."""
    random = np.random.default_rng(seed)
    answer = []
    for record in records:
        steps = record.steps.copy()
        if way == "at random":
            steps[random.random(steps.shape) < 0.3] = np.nan
        else:
            speaker = int(str(record.label))
            for feature in (speaker, (speaker + 3) % FEATURES):
                steps[random.random(len(steps)) < 0.5, feature] = np.nan
        answer.append(replace(record, steps=steps))
    return answer


def measure(way: Way, rnn: str, policy: str, seed: int, epochs: int) -> Trained:
    """Trains one model and scores the test recordings."""
    spec = Spec.model_validate(
        {
            "input": {"features": FEATURES, "missing": policy},
            "model": {"rnn": rnn, "hidden": 32, "layers": 1},
            "output": {"labels": [str(label) for label in range(1, 10)]},
        }
    )
    records, held_out = (
        thinned(list(dataset.read(dataset.locate(f"aeon:JapaneseVowels_{split}"))), way, place)
        for place, split in enumerate(("TRAIN", "TEST"))
    )
    options = TrainingOptions(validation=0.0, epochs=epochs, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        model = train.train(spec, records, options, Path(folder)).model
    return Trained(way, rnn, policy, seed, evaluate(model, make_examples(held_out, spec), spec).accuracy)


def page(facts: dict[str, Any], rows: Sequence[Trained], epochs: int) -> str:
    """Mean accuracy over the seeds, with the lowest and the highest."""
    lines = []
    for way, rnn in itertools.product(WAYS, MODELS):
        cells = []
        for policy in POLICIES:
            accuracies = [row.accuracy for row in rows if (row.way, row.rnn, row.policy) == (way, rnn, policy)]
            cells.append(f"{np.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})")
        lines.append((way, "MLP" if rnn == "none" else "LSTM", *cells))
    how = f"`python -m benchmarks.missing_values`: mean accuracy of the seeds (lowest to highest), {epochs} epochs."
    heads = ("values are missing", "model", *POLICIES)
    return pages.page(facts, "Missing values", how, pages.table(heads, lines))


@click.command(cls=Command)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each model.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@output.as_json_or_page(PAGE)
def main(seeds: int, epochs: int, as_json: bool, out: Path | None) -> None:
    """Trains models that fill in missing values, and models with an indicator of them."""
    torch.set_num_threads(1)
    facts = machine.facts()
    runs = list(itertools.product(WAYS, MODELS, POLICIES, range(seeds)))
    rows = [
        measure(way, rnn, policy, seed, epochs)
        for way, rnn, policy, seed in track(runs, "models trained", console=Console(stderr=True))
    ]
    output.tell(page(facts, rows, epochs), [asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()
