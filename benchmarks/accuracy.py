"""Accuracy of what `lengthwise train` makes, beside MiniRocket with a ridge. `python -m benchmarks.accuracy`.

Each data set ships in the wheel of aeon; `--more FOLDER` adds every `NAME/NAME_TRAIN.ts` with its `_TEST.ts` in a
folder, such as the data of sktime's wheel. A spec has the number of features, the labels and the largest length only:
everything else is chosen. The test split chooses nothing.

| model | is |
|---|---|
| auto | a spec without `[model]`: what a newcomer gets |
| rnn, conv, ... | the same with that preset |
| sequence-grid, training-grid | `kind = "rocket"` as `auto` has it, but `normalize = "training"`, with that `grid` |
| MiniRocket | aeon's, with its ridge classifier; sequences of different lengths are padded with zeros to the longest |

Seconds are processor time on one core, from records to a trained and scored model, so that they mean something on a
busy machine too; aeon compiles its code before they begin.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from rich.console import Console

from benchmarks import machine, pages
from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise_export.architecture.model_spec import PRESETS
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.training.arrays import LabelledSequences
from lengthwise_export.training.options import TrainOptions
from lengthwise_export.training.recipe import ROCKET_MODEL
from lengthwise_export.training.session import run_training

PAGE = pages.RESULTS / "accuracy.md"
SETS: Final = (
    *("JapaneseVowels", "PickupGestureWiimoteZ", "BasicMotions", "ArrowHead"),
    *("ItalyPowerDemand", "GunPoint", "OSULeaf", "ACSF1"),
)
QUICK: Final = ("ItalyPowerDemand",)
AUTO: Final = "auto"
MINIROCKET: Final = "MiniRocket"
GRIDS: Final = {f"{grid}-grid": ROCKET_MODEL | {"grid": grid} for grid in ("sequence", "training")}


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """A data set with its two splits."""

    name: str
    training: list[Record]
    test: list[Record]

    def spec(self, model: dict[str, Any]) -> Spec:
        """The spec that a newcomer writes, with a table `[model]`; where values are missing it says `auto`."""
        every = (*self.training, *self.test)
        steps: dict[str, Any] = {
            "features": self.training[0].steps.shape[1],
            "max_length": max(len(record.steps) for record in every),
        }
        if not model and any(np.isnan(record.steps).any() for record in every):
            model = {"preset": AUTO}
        labels = sorted({str(record.label) for record in self.training})
        return Spec.from_table({"input": steps, "output": {"labels": labels}} | ({"model": model} if model else {}))


@dataclass(frozen=True, slots=True)
class AccuracyOfRun:
    """One training: the share of right labels among the test records."""

    data: str
    model: str
    seed: int
    accuracy: float
    seconds: float
    made: str


def read(name: str, folder: Path | None = None) -> LabelledSet:
    """A data set in a folder, or in aeon's wheel."""
    texts = [f"{name}_{split}" for split in ("TRAIN", "TEST")]
    paths = [f"aeon:{text}" if folder is None else str(folder / f"{text}.ts") for text in texts]
    return LabelledSet(name, *(list(dataset.read(dataset.locate(path), "values")) for path in paths))


def trained(data: LabelledSet, model: str, seed: int) -> AccuracyOfRun:
    """Trains one model as the command does, and scores the test records."""
    spec = data.spec({} if model == AUTO else GRIDS.get(model, {"preset": model}))
    if model in GRIDS:
        spec = spec.with_keys(input={"normalize": "training"})
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        labelled = LabelledSequences(spec, data.training)
        report = run_training(labelled, TrainOptions(seed=seed), Path(folder), test=data.test)
    seconds = time.process_time() - began
    chosen = report["spec"]["model"]
    kind = "rocket" if chosen["kind"] == "rocket" else "conv" if chosen["conv"] else "rnn"
    kind = kind if model == AUTO else model
    made = f"{kind}, {report['spec']['input']['normalize']}"
    return AccuracyOfRun(data.name, model, seed, report["test"]["accuracy"], seconds, made)


def minirocket(data: LabelledSet, seed: int) -> AccuracyOfRun:
    """Aeon's MiniRocket with its ridge classifier, on sequences padded with zeros."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    width = max(len(record.steps) for record in data.training)
    values, test = padded(data.training, width), padded(data.test, width)
    labels = np.array([str(record.label) for record in data.training])
    truth = np.array([str(record.label) for record in data.test])
    classifier = MiniRocketClassifier(random_state=seed, n_jobs=1)
    chosen = np.random.default_rng(0).permutation(len(labels))[:30]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MiniRocketClassifier(random_state=seed, n_jobs=1).fit(values[chosen], labels[chosen])  # compiles
        began = time.process_time()
        classifier.fit(values, labels)
        seconds = time.process_time() - began
        accuracy = float((classifier.predict(test) == truth).mean())
    return AccuracyOfRun(data.name, MINIROCKET, seed, accuracy, seconds, "zeros at the end")


def padded(records: Sequence[Record], width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`[records, features, width]`; longer ones are cut, missing values are zeros."""
    values = np.zeros((len(records), records[0].steps.shape[1], max(width, 9)), dtype=np.float32)
    for row, record in zip(values, records, strict=True):
        steps = np.nan_to_num(record.steps[:width])
        row[:, : len(steps)] = steps.T
    return values


def as_page(facts: dict[str, Any], results: Sequence[AccuracyOfRun]) -> str:
    """The table of means over seeds."""
    measured = {result.model for result in results}
    models = [model for model in (AUTO, *PRESETS, *GRIDS, MINIROCKET) if model in measured]
    lines = []
    for data in dict.fromkeys(result.data for result in results):
        those = [each for each in results if each.data == data]
        of = {model: [each for each in those if each.model == model] for model in (*models, AUTO)}
        made = sorted({result.made for result in of[AUTO]})
        lines.append([data, *(_cell(of[model]) for model in models), " or ".join(made)])
    seeds = max((result.seed for result in results), default=0) + 1
    return pages.page(
        facts,
        "Accuracy of trained models",
        "`python -m benchmarks.accuracy`: test accuracy, mean ± standard deviation over "
        f"{seeds} seed{'s' if seeds > 1 else ''}, and mean seconds of processor time of a training on one core. The "
        "last column says what `auto` chose.",
        pages.table(["data", *models, "auto is"], lines),
    )


def _cell(found: Sequence[AccuracyOfRun]) -> str:
    if not found:
        return "–"  # noqa: RUF001 - a dash
    accuracies = [result.accuracy for result in found]
    spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    seconds = statistics.mean(result.seconds for result in found)
    return f"{statistics.mean(accuracies):.3f}{spread}, {seconds:.1f} s"


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="One small set, one seed; writes no page.")
@click.option("--sets", "names", default=",".join(SETS), show_default=True, help="Sets of aeon's wheel.")
@click.option("--more", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of further sets.")
@click.option("--only-more", is_flag=True, help="Only the sets of --more that are named in --sets.")
@click.option(
    "--models",
    default=",".join([AUTO, *GRIDS, MINIROCKET]),
    show_default=True,
    help=f"Of {AUTO}, {MINIROCKET}, {', '.join([*PRESETS, *GRIDS])}.",
)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--rounds-to", type=click.Path(dir_okay=False, path_type=Path), help="Keeps results, and continues them.")
def main(
    quick: bool, names: str, more: Path | None, only_more: bool, models: str, seeds: int, rounds_to: Path | None
) -> None:
    """Trains on every set, and writes benchmarks/results/accuracy.md."""
    torch.set_num_threads(1)
    if not quick:
        pages.require_clean(PAGE)
    facts = machine.facts()
    console = Console()
    wanted = QUICK if quick else tuple(names.split(","))
    sets = [] if only_more else [read(name) for name in wanted]
    if more is not None:
        sets += [
            read(path.name, path)
            for path in sorted(more.iterdir())
            if (path / f"{path.name}_TRAIN.ts").is_file() and (not only_more or path.name in wanted)
        ]
    done: list[AccuracyOfRun] = []
    if rounds_to is not None and rounds_to.exists():
        done = [AccuracyOfRun(**one) for one in json.loads(rounds_to.read_text())]
    held = {(one.data, one.model, one.seed) for one in done}
    for data in sets:
        for model in models.split(","):
            for seed in range(1 if quick else seeds):
                if (data.name, model, seed) in held:
                    continue
                found = minirocket(data, seed) if model == MINIROCKET else trained(data, model, seed)
                done.append(found)
                console.print(
                    f"{data.name} {model} seed {seed}: {found.accuracy:.3f}, {found.seconds:.1f} s, {found.made}",
                    highlight=False,
                )
                if rounds_to is not None:
                    rounds_to.write_text(json.dumps([asdict(one) for one in done], indent=1) + "\n")
    text = as_page(facts, done)
    if quick:
        console.print(text)
    else:
        pages.write(PAGE, text)


if __name__ == "__main__":
    main()
