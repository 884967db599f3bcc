"""Section `parity`: the same sequences on the CPU in float32 and on the device in each precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.stage import Graph, Stage
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.runtime.session import Outputs, Session

_ROWS = 16
_EDGES = (1, 2, 3, 4, 5, 7, 8, 127, 128, 129, 1024)
"""Lengths that are always measured: at the edges of widths, of blocks and of the longest length."""


def measure(stage: Stage, figures: Figures) -> None:
    """Notes `against_cpu` by graph."""
    sequences = [*stage.of_lengths(_EDGES), *stage.sequences("lognormal", stage.pick(500, 20))]
    multiple = stage.manifest("fp32").width_multiple
    on_cpu: dict[Graph, list[Row]] = {
        graph: answers(stage.session(graph, on_cpu=True), sequences, multiple) for graph in ("fp32", "bundled")
    }
    figures.note(sequences=len(sequences), steps=sum(map(len, sequences)))
    figures.note(largest_logit={graph: _largest(rows) for graph, rows in on_cpu.items()})
    for graph in stage.graphs():
        stage.say(f"parity, {graph}")
        with figures.trying(graph):
            expected = on_cpu["bundled" if graph.startswith("bundled") else "fp32"]
            figures.note(against_cpu={graph: compared(answers(stage.session(graph), sequences, multiple), expected)})


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's outputs: `logits [classes]`, `attention [length]` or None."""

    logits: NDArray[np.float32]
    attention: NDArray[np.float32] | None


def answers(session: Session, sequences: Sequence[Steps], multiple: int) -> list[Row]:
    """Each sequence's outputs, batched with others of about its length."""
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    found: dict[int, Row] = {}
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        batch = pad([sequences[place] for place in places], multiple=multiple)
        found |= zip(places, rows(session.run(batch, ("logits", "attention")), batch), strict=True)
    return [found[place] for place in range(len(sequences))]


def rows(outputs: Outputs, batch: PaddedBatch) -> list[Row]:
    """Each row's outputs, without padding."""
    attention = [None] * batch.rows if outputs.attention is None else outputs.attention
    return [
        Row(logits, None if weights is None else weights[:length])
        for logits, weights, length in zip(outputs.logits, attention, batch.lengths, strict=True)
    ]


def compared(found: Sequence[Row], expected: Sequence[Row]) -> dict[str, Any]:
    """How far two lists of rows are apart; `equal_bits` and `other_class` (another best one) are shares of rows."""
    pairs = [*zip(found, expected, strict=True)]
    logits = np.array([_apart(a.logits, b.logits) for a, b in pairs])
    weights = [
        _apart(a.attention, b.attention) for a, b in pairs if a.attention is not None and b.attention is not None
    ]
    return {
        "logits": float(logits.max()),
        "logits_median": float(np.median(logits)),
        "attention": max(weights) if weights else None,
        "equal_bits": float(np.mean(logits == 0)),
        "other_class": float(np.mean([a.logits.argmax() != b.logits.argmax() for a, b in pairs])),
        "finite": bool(np.isfinite(logits).all()),
    }


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest absolute difference; NaN where either is, or both are infinite."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(one - other).max())


def _largest(found: Sequence[Row]) -> float:
    return max(float(np.abs(row.logits).max()) for row in found)
