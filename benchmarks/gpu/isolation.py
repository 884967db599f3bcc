"""Section `isolation`: batch invariance, and padding that holds anything.

Each sequence is answered unbatched and in batches with other rows, widths, neighbours and places; padding holds NaN,
infinities and 1e30, and a neighbour may hold them at its valid steps. None of that may reach an answer. On a GPU
another shape may mean another order of sums, so the bits may differ: this section measures by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.parity import Row, compared, rows
from benchmarks.gpu.stage import Graph, Stage
from lengthwise.batching.limits import BatchLimits
from lengthwise.padding import PaddedBatch, Steps, pad, rounded_width, step_mask
from lengthwise.runtime.session import Session

JUNK = {"NaN": np.nan, "Inf": np.inf, "-Inf": -np.inf, "1e30": 1e30}


def measure(stage: Stage, figures: Figures) -> None:
    """Notes, by graph, the differences, and the tolerance that the service itself measured on this device."""
    sequences = stage.sequences("lognormal", stage.pick(200, 12), max_length=512)
    multiple = stage.manifest("fp32").width_multiple
    for graph in stage.graphs():
        stage.say(f"isolation, {graph}")
        with figures.trying(graph):
            of_graph(stage, graph, sequences, multiple, figures)
    for precision in stage.precisions():
        stage.say(f"tolerance of the service, {precision}")
        with figures.trying(f"promise, {precision}"):
            promise = stage.service(precision, BatchLimits(), figures).model.promise
            figures.note(**{precision: {"promise": None if promise is None else promise.model_dump()}})


def of_graph(stage: Stage, graph: Graph, sequences: list[Steps], multiple: int, figures: Figures) -> None:
    """The differences of one graph's answers."""
    session = stage.session(graph)
    unbatched = [row for steps in sequences for row in answer(session, pad([steps], multiple=multiple))]
    again = [row for steps in sequences for row in answer(session, pad([steps], multiple=multiple))]
    found: dict[str, Any] = {"unbatched again": compared(again, unbatched)}
    random = np.random.default_rng(stage.seed + 1)
    for name, batches in batchings(sequences, multiple, random).items():
        found[name] = batched(session, batches, unbatched)
        figures.note(**{graph: found})
    found["padding"] = {name: padded_with(session, sequences, multiple, junk) for name, junk in JUNK.items()}
    found["neighbour"] = {
        name: beside(session, sequences[: stage.pick(64, 6)], unbatched, multiple, junk) for name, junk in JUNK.items()
    }
    figures.note(**{graph: found})


Placed = tuple[list[int], PaddedBatch]
"""A batch, and which sequence each of its rows is."""


def batchings(sequences: Sequence[Steps], multiple: int, random: np.random.Generator) -> dict[str, list[Placed]]:
    """The sequences in batches of different kinds."""
    shuffled = random.permutation(len(sequences)).tolist()
    kinds: dict[str, list[Placed]] = {
        f"rows {rows}": [(places, _padded(sequences, places, multiple)) for places in _groups(shuffled, rows)]
        for rows in (2, 3, 8, 31, 64)
    }
    for more in (4, 60):
        kinds[f"wider by {more}"] = [
            (places, _padded(sequences, places, multiple, more=more)) for places in _groups(shuffled, 8)
        ]
    kinds["other order"] = [
        (places[::-1], _padded(sequences, places[::-1], multiple)) for places in _groups(shuffled, 8)
    ]
    return kinds


def batched(session: Session, batches: Sequence[Placed], unbatched: Sequence[Row]) -> dict[str, Any]:
    """Each row of some batches against the same sequence unbatched."""
    found, expected = [], []
    for places, batch in batches:
        found += answer(session, batch)
        expected += [unbatched[place] for place in places]
    return compared(found, expected)


def padded_with(session: Session, sequences: Sequence[Steps], multiple: int, junk: float) -> dict[str, Any]:
    """Batches whose padding holds junk against the same batches with zeros there: no bit may differ."""
    found, expected = [], []
    for places in _groups(range(len(sequences)), 16):
        clean = _padded(sequences, places, multiple, more=multiple)
        valid = step_mask(clean.lengths, clean.width)[:, :, None]
        dirty = replace(clean, steps=np.where(valid, clean.steps, np.float32(junk)))
        found += answer(session, dirty)
        expected += answer(session, clean)
    return compared(found, expected)


def beside(
    session: Session, sequences: Sequence[Steps], unbatched: Sequence[Row], multiple: int, junk: float
) -> dict[str, Any]:
    """Each sequence beside one whose valid steps are junk, against the same unbatched."""
    found = []
    for steps in sequences:
        batch = pad([steps, np.full_like(sequences[0], junk)], multiple=multiple)
        found.append(answer(session, batch)[0])
    return compared(found, unbatched[: len(sequences)])


def answer(session: Session, batch: PaddedBatch) -> list[Row]:
    """Each row's outputs."""
    return rows(session.run(batch, ("logits", "attention")), batch)


def _groups(places: Sequence[int], rows: int) -> Iterator[list[int]]:
    for first in range(0, len(places), rows):
        yield [*places[first : first + rows]]


def _padded(sequences: Sequence[Steps], places: Sequence[int], multiple: int, *, more: int = 0) -> PaddedBatch:
    group = [sequences[place] for place in places]
    return pad(group, width=rounded_width(max(map(len, group)), multiple) + more)
