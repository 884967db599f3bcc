"""Builds the bundled model again: `make model`, or `python -m benchmarks.bundled_model`.

    train -> report -> export, which verifies -> score through the service's own session -> put into its place

All training recordings are trained on, for a number of epochs that was fixed beforehand: nothing is chosen on the test
recordings: they are scored once, at the end. Report and weights stay in `runs/japanese-vowels`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console

from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.datasets.dataset import Record
from lengthwise.errors import VerificationError
from lengthwise.padding import pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import WEIGHTS_FILE
from lengthwise_export.exporting.flow import publish
from lengthwise_export.training import train
from lengthwise_export.training.options import TrainingOptions
from tests.support.specs import from_spec

SPEC = Path("model_export/lengthwise_export/specs/japanese-vowels.toml")
LEAST_ACCURACY = 0.97


def accuracy(directory: Path, records: list[Record]) -> float:
    """Share of the recordings that a model directory answers with their label, all in one batch."""
    manifest = Manifest.read(directory)
    logits = Session.load(directory, manifest).run(pad([record.steps for record in records])).logits
    answers = [manifest.labels[best] for best in logits.argmax(axis=1)]
    return sum(answer == record.label for answer, record in zip(answers, records, strict=True)) / len(records)


def replace(bundled: Path, directory: Path) -> None:
    """Replaces the bundled model directory, by renaming."""
    bundled.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundled.parent, prefix=".stage-") as aside:
        shutil.copytree(directory, Path(aside) / "new")
        if bundled.exists():
            bundled.rename(Path(aside) / "old")
        (Path(aside) / "new").rename(bundled)


@click.command(cls=Command)
@click.option("--run", default="runs/japanese-vowels", show_default=True, type=click.Path(path_type=Path))
def main(run: Path) -> None:
    """Trains, exports, verifies and replaces the bundled model."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    spec, options = Spec.read(SPEC), TrainingOptions(validation=0.0)
    training = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TRAIN")))
    held_out = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST")))
    run.mkdir(parents=True, exist_ok=True)
    with console.status("training") as status:
        train.train(
            spec,
            training,
            options,
            run,
            on_epoch=lambda epoch: status.update(
                f"training, epoch {epoch.number + 1} of {options.epochs}, loss {epoch.training_loss:.4f}"
            ),
        )
    with tempfile.TemporaryDirectory() as folder, console.status("exporting and verifying"):
        place = Path(folder) / "japanese-vowels" / "1"
        published = publish(from_spec(spec, run / WEIGHTS_FILE), place, data=held_out)
        share = accuracy(published.directory, held_out)
        if share < LEAST_ACCURACY:
            raise VerificationError(f"accuracy {share:.4f} on the test recordings, at least {LEAST_ACCURACY} is wanted")
        replace(bundled_models() / "japanese-vowels" / "1", published.directory)
    console.print(f"bundled: {published.nodes} nodes, {len(published.cases)} cases hold, test accuracy {share:.4f}")


if __name__ == "__main__":
    main()
