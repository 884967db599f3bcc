"""Answers with and without the true lengths: `python -m benchmarks.padding_picture` draws `docs/padding.png`.

The bundled graph answers the same recordings twice. Once it is told their lengths. Once it is told that every padded
step is a step, which is what a model without lengths or mask computes on a padded batch. Everything else is the same,
weights too; so whatever moves in the second line was moved by padding.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np

from lengthwise.commands.command import Command
from lengthwise.datasets import dataset
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.settings import bundled_models

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

DIRECTORY = bundled_models() / "japanese-vowels" / "1"
MOST_PADDING = 48
ROWS = 64


def probabilities(session: Session, manifest: Manifest, batch: PaddedBatch, *, told: bool) -> np.ndarray:
    """`[rows, classes]`; with the true lengths, or with the padding counted as data."""
    lengths = batch.lengths if told else np.full(batch.rows, batch.width, dtype=np.int32)
    return answers.probabilities(session.run(PaddedBatch(batch.steps, lengths)).logits, manifest)


def labels_changed(session: Session, manifest: Manifest, recordings: list[Steps], *, told: bool) -> int:
    """How many recordings get another label in batches of 64, in file order, than unbatched."""
    changed = 0
    for start in range(0, len(recordings), ROWS):
        members = recordings[start : start + ROWS]
        together = probabilities(session, manifest, pad(members), told=told).argmax(axis=1)
        for row, steps in zip(together, members, strict=True):
            alone = probabilities(session, manifest, pad([steps], multiple=1), told=told).argmax()
            changed += int(row != alone)
    return changed


def draw(curves: dict[bool, list[np.ndarray]], changed: dict[bool, int], count: int, out: Path) -> None:
    """Two panels: without lengths, and with them."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, constrained_layout=True)
    for panel, told in zip(panels, (False, True), strict=True):
        for curve in curves[told]:
            panel.plot(range(len(curve)), curve, linewidth=1.4)
        title = "with lengths" if told else "without lengths"
        panel.set_title(f"{title}: {changed[told]} of {count} labels change in company", fontsize=10)
        panel.set_xlabel("steps of zeros appended")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("probability of the true speaker")
    panels[0].set_ylim(-0.02, 1.02)
    figure.savefig(out, dpi=130)


@click.command(cls=Command)
@click.option("--out", default="docs/padding.png", show_default=True, type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Draws the picture, and prints its figures as JSON."""
    manifest = Manifest.read(DIRECTORY)
    session = Session.load(DIRECTORY, manifest)
    records = list(dataset.read(dataset.locate("aeon:JapaneseVowels_TEST"), "values"))
    recordings = [record.steps for record in records]
    curves: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for told, lines in curves.items():
        for record in records[:: len(records) // 12][:12]:
            label = manifest.labels.index(str(record.label))
            batches = [pad([record.steps], width=len(record.steps) + added) for added in range(MOST_PADDING + 1)]
            lines.append(np.array([probabilities(session, manifest, batch, told=told)[0, label] for batch in batches]))
    changed = {told: labels_changed(session, manifest, recordings, told=told) for told in (True, False)}
    draw(curves, changed, len(records), out)
    moved = {told: float(max(np.abs(curve - curve[0]).max() for curve in lines)) for told, lines in curves.items()}
    click.echo(
        json.dumps(
            {
                "recordings": len(records),
                "labels_changed_in_company": {"without_lengths": changed[False], "with_lengths": changed[True]},
                "largest_move_of_a_probability": {"without_lengths": moved[False], "with_lengths": moved[True]},
                "picture": str(out),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
