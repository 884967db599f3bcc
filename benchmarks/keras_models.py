"""Keras beside the exported graph, over 1,000 ragged sequences a model. `python -m benchmarks.keras_models`.

The models are the sound Keras models of the gallery, saved and read as a user's file (those with a class of their own
from their factory). Keras answers the sequences of each length together, so without any padding, and 20 of them one by
one, as `model.predict` does for one; the graph answers batches of 16 as they come, and each sequence alone, through the
service's padding and session.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
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
from benchmarks.exported_models import beside_alone
from lengthwise.commands.command import Command
from lengthwise.runtime.session import Session
from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.keras_models.backend import import_keras
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.keras_index import KERAS_SOUND, KerasExhibit
from tests.gallery.keras_trials import calm, loaded, made, ragged, saved

PAGE = pages.RESULTS / "keras_models.md"
ONE_BY_ONE = 20
"""Sequences that Keras answers by themselves."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one model. Differences are in units of max(1, a row's largest value)."""

    model: str
    sequences: int  # how many were answered
    from_keras: float  # the largest difference between Keras, without padding, and the graph in batches
    from_alone: float  # the largest between the graph's batched and unbatched answers
    same_bits: int  # how many sequences get the same bits batched and unbatched
    nodes: int  # of the graph


def measure(exhibit: KerasExhibit, count: int) -> Figures:
    """Answers `count` sequences in Keras, each alone, and with the graph, batched and unbatched."""
    with tempfile.TemporaryDirectory() as folder, calm():
        file = None if exhibit.custom else saved(exhibit, Path(folder))
        options = TargetOptions(vocabulary=exhibit.vocabulary if exhibit.custom else None)
        target = targets.read(exhibit.target if file is None else str(file), options)
        model = made(exhibit) if file is None else loaded(file)
        graph = target.build("model", 20)
    manifest = target.describe()
    session = Session(graph.SerializeToString(), manifest)
    drawn = ragged(exhibit, count)
    sequences = [steps.astype(np.float32 if exhibit.vocabulary is None else np.int64) for steps in drawn]
    in_keras = _predicted(model, drawn)
    batched, from_alone, same_bits = beside_alone(session, sequences)
    return Figures(
        exhibit.name,
        sequences=count,
        from_keras=max(map(relative_difference, in_keras, batched)),
        from_alone=from_alone,
        same_bits=same_bits,
        nodes=len(graph.graph.node),
    )


def _predicted(model: Any, sequences: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
    """The answer to each sequence: the longest ones one by one, the others with those of the same length."""
    answers: dict[int, NDArray[np.float32]] = {}
    by_length: dict[int, list[int]] = {}
    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place]), reverse=True):
        one_by_one = len(by_length) < ONE_BY_ONE
        by_length.setdefault(-place - 1 if one_by_one else len(sequences[place]), []).append(place)
    with calm():
        for places in by_length.values():
            rows = model.predict_on_batch(np.stack([sequences[place] for place in places]))
            answers.update(zip(places, np.asarray(rows), strict=True))
    return [answers[place] for place in range(len(sequences))]


def page(facts: dict[str, Any], rows: Sequence[Figures], version: str) -> str:
    """A line for each model."""
    lines = [
        (
            row.model,
            f"{row.from_keras:.2g}",
            f"{row.from_alone:.2g}",
            f"{row.same_bits:,} of {row.sequences:,}",
            str(row.nodes),
        )
        for row in rows
    ]
    how = (
        f"`python -m benchmarks.keras_models`: Keras {version} on torch. The largest differences, in units of "
        "max(1, a row's largest value), and the sequences that get the same bits batched and unbatched. Keras answers "
        f"{ONE_BY_ONE} sequences one by one, and the others with those of the same length, so without padding."
    )
    heads = ("model", "graph from Keras alone", "batched from unbatched", "the same bits", "nodes")
    return pages.page(facts, "Keras and the exported graph", how, pages.table(heads, lines))


@click.command(cls=Command)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(3), help="Sequences a model.")
@click.option("--only", default="", help="Models whose name contains this.")
@output.as_json_or_page(PAGE)
def main(count: int, only: str, as_json: bool, out: Path | None) -> None:
    """Measures how far exported graphs are from Keras, and batched answers from unbatched ones."""
    torch.set_num_threads(1)
    facts = machine.facts()
    version = import_keras().__version__
    chosen = [exhibit for exhibit in KERAS_SOUND if only in exhibit.name]
    rows = [measure(exhibit, count) for exhibit in track(chosen, "models measured", console=Console(stderr=True))]
    output.tell(page(facts, rows, version), [asdict(row) for row in rows], as_json=as_json, out=out)


if __name__ == "__main__":
    main()
