"""Tells rows and steps in the tensors inside a model by their sizes, and compares two runs where it matters.

A check gives its batches numbers of rows and steps that occur nowhere else in the model (primes). So an axis of that
size is the rows, or the steps, through transposes and merges; an axis a little longer or shorter than the steps has
been padded or convolved, one of half their number has been pooled. Where a shape can be read in several ways, the
reading under which two runs agree best is taken: a wrong one mixes padding in, and cannot agree by accident.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MOST_READINGS: Final = 96
_LARGEST_SHIFT: Final = 8
"""How many steps a padding, a class token or a convolution may add or take and still be known as an axis of steps."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one batch.

    Attributes:
        lengths: Each row's number of steps.
        width: The padded number of steps.
    """

    lengths: tuple[int, ...]
    width: int

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """The longest row's number of steps: the width of whatever was cut to it."""
        return max(self.lengths)

    @property
    def valid_steps(self) -> int:
        """The sum of the lengths: the size of an axis that holds valid steps only."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two batches that hold some of the same sequences.

    Attributes:
        before: The sizes of the one batch.
        after: The sizes of the other.
        rows: Which row of the first is which of the second.
        known_sizes: Sizes that the model's weights have: an axis of such a size is taken for nothing else.
        may_be_sorted: Whether a tensor's rows may stand sorted by length, the longest first, as packing sorts them.
    """

    before: Geometry
    after: Geometry
    rows: tuple[tuple[int, int], ...]
    known_sizes: frozenset[int] = frozenset()
    may_be_sorted: bool = True

    @property
    def orders(self) -> list[tuple[tuple[int, int], ...]]:
        """The pairs of rows, for a tensor in the batches' order and for one that was sorted."""
        return list(dict.fromkeys((self.rows, self._rows_by_length) if self.may_be_sorted else (self.rows,)))

    @property
    def _rows_by_length(self) -> tuple[tuple[int, int], ...]:
        ranks = [
            {row: rank for rank, row in enumerate(sorted(range(sizes.rows), key=lambda row: -sizes.lengths[row]))}
            for sizes in (self.before, self.after)
        ]
        return tuple((ranks[0][row], ranks[1][other]) for row, other in self.rows)

    @property
    def is_same_rows(self) -> bool:
        """Whether both hold the same sequences in the same order."""
        return self.before.lengths == self.after.lengths and all(before == after for before, after in self.rows)


@dataclass(frozen=True, slots=True)
class _Steps:
    """An axis, or a part of a merged one, that runs along the steps, in both runs.

    `shift` steps were put in front (or, below 0, are missing at the end); `stride` steps became one.
    """

    before: int
    after: int
    shift: int = 0
    stride: int = 1

    def valid(self, length: int) -> slice:
        """Where the steps of a row of that length lie."""
        if self.stride > 1:
            return slice(0, -(-length // self.stride))
        return slice(max(self.shift, 0), max(self.shift, 0) + max(length + min(self.shift, 0), 0))


@dataclass(frozen=True, slots=True)
class _Rows:
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class _Other:
    before: int
    after: int


_Part = _Steps | _Rows | _Other
_Reading = tuple[_Part, ...]


def difference(before: Array, after: Array, pairing: Pairing) -> float | None:
    """How far two recordings of one tensor lie apart at valid positions of the rows that the two batches share.

    Returns:
        The largest difference over the larger of 1 and the tensor's largest value there; infinite where a value is
        finite in one run alone; None where the shapes say nothing.
    """
    if before.ndim != after.ndim:
        return float("inf")
    found = []
    for reading in itertools.islice(_readings(before.shape, after.shape, pairing), _MOST_READINGS):
        for rows in pairing.orders:
            shared = _shared(before, after, reading, pairing, rows)
            apart = max((gap(*both) for both in shared), default=0.0)
            if apart == 0.0:
                return 0.0
            found.append(apart)
    return min(found, default=None)


def gap(before: Array, after: Array) -> float:
    """The largest difference of two arrays of one shape, relative to their largest value where that is above 1."""
    if before.size == 0:
        return 0.0
    if before.dtype.kind not in "fc":
        return float(np.any(before != after))
    with np.errstate(invalid="ignore", over="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        if same.all():
            return 0.0
        apart = np.abs(before[~same].astype(np.complex128) - after[~same])
    if not np.isfinite(apart).all():
        return float("inf")
    finite = np.abs(before[np.isfinite(before)])
    return float(apart.max() / max(1.0, float(finite.max(initial=0.0))))


def along_steps(before: Array, after: Array, pairing: Pairing, row: int) -> list[float] | None:
    """How far one row lies apart at each step, padding included; None for a tensor without rows and steps of its own.

    Args:
        before: The tensor in the one run.
        after: The same in the other.
        pairing: The two batches.
        row: Which of `pairing.rows`.
    """
    if before.ndim != after.ndim:
        return None
    for reading in _readings(before.shape, after.shape, pairing):
        steps = [place for place, part in enumerate(reading) if isinstance(part, _Steps)]
        rows = [place for place, part in enumerate(reading) if isinstance(part, _Rows)]
        if not steps or not rows:
            continue
        pair = pairing.rows[row]
        first, second = (
            np.take(np.moveaxis(_split(tensor, reading, run), (rows[0], steps[0]), (0, 1)), pair[run], axis=0)
            for run, tensor in enumerate((before, after))
        )
        shared = min(len(first), len(second))
        return [gap(one, other) for one, other in zip(first[:shared], second[:shared], strict=True)]
    return None


def has_steps(tensor: Array, geometry: Geometry) -> bool:
    """Whether a tensor has an axis as long as the batch is wide."""
    return geometry.width in tensor.shape


def padding_of(tensor: Array, geometry: Geometry) -> Array | None:
    """The values that a tensor with rows and steps holds at padding; None where it has not one axis of each."""
    if tensor.shape.count(geometry.rows) != 1 or tensor.shape.count(geometry.width) != 1:
        return None
    order = (tensor.shape.index(geometry.rows), tensor.shape.index(geometry.width))
    valid = np.arange(geometry.width) < np.asarray(geometry.lengths)[:, None]
    padding: Array = np.moveaxis(tensor, order, (0, 1))[~valid]
    return padding


def _readings(before: Sequence[int], after: Sequence[int], pairing: Pairing) -> Iterator[_Reading]:
    axes = [list(_axis(*sizes, pairing)) for sizes in zip(before, after, strict=True)]
    for parts in itertools.product(*axes):
        yield tuple(itertools.chain.from_iterable(parts))


def _axis(before: int, after: int, pairing: Pairing) -> Iterator[_Reading]:
    """The ways to read an axis of these two sizes, the likeliest first."""
    rows = _Rows(pairing.before.rows, pairing.after.rows)
    widths = [
        _Steps(pairing.before.width, pairing.after.width),
        _Steps(pairing.before.longest, pairing.after.longest),
    ]
    parts: list[_Part] = [rows, *widths]
    exact = [part for part in parts if (part.before, part.after) == (before, after)]
    if exact:
        yield from ((part,) for part in exact)
        return
    if before == after and (before == 1 or before in pairing.known_sizes):
        yield (_Other(before, after),)
        return
    if (before, after) == (pairing.before.valid_steps, pairing.after.valid_steps):
        if pairing.is_same_rows:
            yield (_Other(before, after),)
        return
    found = False
    for reading in _merged(before, after, rows, widths):
        found = True
        yield reading
    for steps in () if found else widths:
        for part in _near(before, after, steps):
            found = True
            yield (part,)
    if not found and before == after:
        yield (_Other(before, after),)


def _merged(before: int, after: int, rows: _Rows, widths: Sequence[_Steps]) -> Iterator[_Reading]:
    """An axis of rows or steps merged with each other or with something else, in any order."""
    wholes: list[tuple[_Rows | _Steps, ...]] = [(rows, steps) for steps in widths]
    wholes += [(rows,), *((steps,) for steps in widths)]
    for parts in wholes:
        mine, other = math.prod(part.before for part in parts), math.prod(part.after for part in parts)
        if before % mine or after % other or before // mine != after // other:
            continue
        times = before // mine
        rest = () if times == 1 else (_Other(times, times),)
        yield from itertools.permutations((*parts, *rest))


def _near(before: int, after: int, steps: _Steps) -> Iterator[_Steps]:
    """An axis of steps that was padded, convolved or pooled."""
    added = before - steps.before
    if added == after - steps.after and 0 < abs(added) <= _LARGEST_SHIFT:
        yield from (_Steps(before, after, shift) for shift in (range(added + 1) if added > 0 else (added,)))
    for stride in (2, 3, 4):
        down = (steps.before // stride, steps.after // stride)
        up = (-(-steps.before // stride), -(-steps.after // stride))
        if (before, after) in (down, up):
            yield _Steps(before, after, stride=stride)


def _shared(
    before: Array, after: Array, reading: _Reading, pairing: Pairing, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Array, Array]]:
    """The parts of two tensors that should be equal, as pairs of arrays of one shape."""
    first, second = (_split(tensor, reading, run) for run, tensor in enumerate((before, after)))
    rows = next((place for place, part in enumerate(reading) if isinstance(part, _Rows)), None)
    shared_lengths = [pairing.before.lengths[row] for row, _ in pairing.rows]
    if rows is None:
        where = _valid(reading, max(shared_lengths))
        yield first[where], second[where]
        return
    rest = reading[:rows] + reading[rows + 1 :]
    for (row, other), length in zip(pairs, shared_lengths, strict=True):
        where = _valid(rest, length)
        yield np.take(first, row, axis=rows)[where], np.take(second, other, axis=rows)[where]


def _valid(reading: _Reading, length: int) -> tuple[slice, ...]:
    return tuple(part.valid(length) if isinstance(part, _Steps) else slice(None) for part in reading)


def _split(tensor: Array, reading: _Reading, run: int) -> Array:
    """A tensor with its merged axes apart."""
    return tensor.reshape([part.after if run else part.before for part in reading])
