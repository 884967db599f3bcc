"""Holds a model that was given lengths against the original alone: in batches of many sizes and widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from lengthwise.runtime.manifest import GraphNames
from tests.gallery.index import Exhibit
from tests.gallery.trials import Array, Model, alone, graph_model, junk, padded, run_of

LONGEST = 64
"""Steps of the longest sequence that is tried."""
WIDTH_MULTIPLE = 4
"""Widths at which equal bits are asked for are multiples of this, as the service makes them."""
BATCH_ROWS = (1, 2, 5, 16, 3, 32, 8)
EXTRA_WIDTHS = (0, 1, 3, 17, 0, 8, 40)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a model with lengths does against the original alone."""

    difference: float  # The largest one, at valid positions; infinite where an answer is not finite
    length: int  # Steps of the sequence that it belongs to
    width: int  # Of the batch that this sequence was in
    other_bits: int  # Sequences whose answers differ between two companies, in bits
    sequences: int  # How many were tried


def ragged(exhibit: Exhibit, count: int, *, longest: int = LONGEST, seed: int = 17) -> list[Array]:
    """Sequences of lengths from the exhibit's shortest to `longest`; the shortest and the longest are among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(exhibit.shortest, longest + 1, size=count)
    lengths[:3] = exhibit.shortest, longest, exhibit.shortest + 1
    if exhibit.vocabulary is not None:
        return [rng.integers(0, exhibit.vocabulary, size=length) for length in lengths]
    rows = [rng.normal(size=(length, exhibit.features)).astype(np.float32) for length in lengths]
    for steps in rows[::5]:
        steps[rng.integers(len(steps))] = 0.0  # a step of zeros is data
    return rows


def mended_model(graph: ModelProto, exhibit: Exhibit, names: GraphNames) -> Model:
    """How to run a graph that was given lengths, with the inputs and the order of axes of `names`."""
    return graph_model(
        replace(
            exhibit,
            values=names.sequences,
            second="lengths",
            second_name=names.lengths,
            output=names.logits,
            time_first=names.time_first,
            channels_first=names.channels_first,
            raw=not names.features_axis,
        ),
        graph,
    )


def compare(exhibit: Exhibit, mended: Model, *, count: int = 200) -> Comparison:
    """Runs the same sequences alone through the original, and in four companies through the other model.

    The first company is padded with zeros to any width. The next two come in other orders, padded with zeros and with
    junk to widths that the service would choose; between these the bits are compared. The last one is padded with what
    is not finite.
    """
    rows = ragged(exhibit, count)
    expected = alone(run_of(exhibit), rows)
    rng = np.random.default_rng(19)
    companies = [
        answers(mended, rows, rng.permutation(count), np.zeros, multiple=1),
        answers(mended, rows, rng.permutation(count), np.zeros, multiple=WIDTH_MULTIPLE),
        answers(mended, rows, rng.permutation(count), junk(exhibit), multiple=WIDTH_MULTIPLE),
        answers(mended, rows, rng.permutation(count), junk(exhibit) if exhibit.vocabulary else poison, multiple=1),
    ]
    if exhibit.per_step:
        companies = [
            [(answer[: len(steps)], width) for (answer, width), steps in zip(company, rows, strict=True)]
            for company in companies
        ]
    worst = max(
        (apart(answer, right), len(steps), width)
        for company in companies
        for (answer, width), right, steps in zip(company, expected, rows, strict=True)
    )
    other_bits = sum(
        one.tobytes() != other.tobytes() for (one, _), (other, _) in zip(companies[1], companies[2], strict=True)
    )
    return Comparison(*worst, other_bits=other_bits, sequences=count)


def poison(shape: tuple[int, ...]) -> Array:
    """NaN, infinities, and numbers that overflow when they are multiplied."""
    return np.random.default_rng(23).choice([np.nan, np.inf, -np.inf, 1e30, -1e30], size=shape)


def answers(
    model: Model, rows: list[Array], order: Array, padding: Callable[[tuple[int, ...]], Array], *, multiple: int
) -> list[tuple[Array, int]]:
    """Each sequence's answer, and the width of the batch that it was in, in the order of the sequences."""
    found: dict[int, tuple[Array, int]] = {}
    for members, extra in batches(order):
        longest = max(len(rows[member]) for member in members)
        width = -(-(longest + extra) // multiple) * multiple
        logits = model(*padded([rows[member] for member in members], width, padding))
        found.update({member: (answer, width) for member, answer in zip(members, logits, strict=True)})
    return [found[number] for number in range(len(rows))]


def batches(order: Array) -> Iterator[tuple[list[int], int]]:
    """Members of each batch, and how much wider than its longest it is."""
    turn = taken = 0
    while taken < len(order):
        rows = BATCH_ROWS[turn % len(BATCH_ROWS)]
        yield [int(member) for member in order[taken : taken + rows]], EXTRA_WIDTHS[turn // 2 % len(EXTRA_WIDTHS)]
        taken, turn = taken + rows, turn + 1


def apart(answer: Array, expected: Array) -> float:
    """The largest difference; infinite where one is not finite or the shapes differ."""
    if answer.shape != expected.shape:
        return np.inf
    gap = np.abs(answer - expected).max()
    return float(gap) if np.isfinite(gap) else np.inf
