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
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_MOST_READINGS: Final = 96
_LARGEST_SHIFT: Final = 8
"""How many steps a padding, a class token or a convolution may add or take and still be known as an axis of steps."""
_LARGEST_PADDING: Final = 64
"""Likewise, where all of them are put in front, all behind, or half of them each."""
_STRIDES: Final = (2, 3, 4)
"""How many steps a pooling may make one of."""


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
        larger: The sizes of a batch that is larger in every way, where that ran too.
        may_be_sorted: Whether a tensor's rows may stand sorted by length, the longest first, as packing sorts them.
        chunks: Numbers of steps that the model cuts its sequences into.
    """

    before: Geometry
    after: Geometry
    rows: tuple[tuple[int, int], ...]
    known_sizes: frozenset[int] = frozenset()
    larger: Geometry | None = None
    may_be_sorted: bool = True
    chunks: frozenset[int] = frozenset()

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
        """Whether both hold the same sequences, all of them, in the same order."""
        every = tuple((row, row) for row in range(self.before.rows))
        return self.before.lengths == self.after.lengths and self.rows == every


class _AxisPart(Protocol):
    """An axis, or one of those that were merged into one."""

    def size(self, batch: Geometry) -> int:
        """How long it is in a batch of these sizes."""


@dataclass(frozen=True, slots=True)
class _Rows:
    def size(self, batch: Geometry) -> int:
        return batch.rows


@dataclass(frozen=True, slots=True)
class _Other:
    times: int

    def size(self, batch: Geometry) -> int:
        return self.times


@dataclass(frozen=True, slots=True)
class _Steps:
    """Along the steps.

    Attributes:
        cut: As many as the longest row has, and not as the batch is wide.
        shift: So many were put in front, or (below 0) are missing at the end.
        after: So many were put behind.
        stride: So many became one.
        up: Whether a part of `stride` steps that was left over became one too.
        whole: Their number was rounded up to a multiple of it, padding put behind.
    """

    cut: bool = False
    shift: int = 0
    after: int = 0
    stride: int = 1
    up: bool = False
    whole: int = 1

    def size(self, batch: Geometry) -> int:
        steps = -(-(batch.longest if self.cut else batch.width) // self.whole) * self.whole
        return (-(-steps // self.stride) if self.up else steps // self.stride) + self.shift + self.after

    def valid(self, length: int) -> slice:
        """Where the steps of a row of that length lie."""
        if self.stride > 1:
            return slice(0, -(-length // self.stride))
        return slice(max(self.shift, 0), max(self.shift, 0) + max(length + min(self.shift, 0), 0))


_AxisReading = tuple[_AxisPart, ...]
_EXACT: Final[tuple[_AxisPart, ...]] = (_Rows(), _Steps(), _Steps(cut=True))


def difference(before: Array, after: Array, pairing: Pairing, larger: tuple[int, ...] | None = None) -> float | None:
    """How far two recordings of one tensor lie apart at valid positions of the rows that the two batches share.

    Args:
        before: The tensor in the one run.
        after: The same in the other.
        pairing: The two batches.
        larger: Its shape in the batch of `pairing.larger`, where that ran: what is as long there as here runs along
            neither rows nor steps.

    Returns:
        The largest difference over the larger of 1 and the tensor's largest value there; infinite where a value is
        finite in one run alone; None where the shapes say nothing.
    """
    if before.ndim != after.ndim:
        return float("inf")
    before, after, larger = _without_chunks(before, after, larger, pairing)
    found = []
    for reading in itertools.islice(_readings(before.shape, after.shape, pairing, larger), _MOST_READINGS):
        for rows in pairing.orders:
            shared = _shared(before, after, reading, pairing, rows)
            apart = max((gap(*both) for both in shared), default=0.0)
            if apart == 0.0:
                return 0.0
            found.append(apart)
    return min(found, default=None)


def gap(before: Array, after: Array) -> float:
    """The largest difference of two arrays, relative to their largest value where that is above 1."""
    if before.shape != after.shape:
        return float("inf")
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


def along_steps(
    before: Array, after: Array, pairing: Pairing, row: int, larger: tuple[int, ...] | None = None
) -> list[float] | None:
    """How far one row lies apart at each step, padding included; None for a tensor without rows and steps of its own.

    Args:
        before: The tensor in the one run.
        after: The same in the other.
        pairing: The two batches.
        row: Which of `pairing.rows`.
        larger: See `difference`.
    """
    if before.ndim != after.ndim:
        return None
    before, after, larger = _without_chunks(before, after, larger, pairing)
    for reading in _readings(before.shape, after.shape, pairing, larger):
        steps = [place for place, part in enumerate(reading) if isinstance(part, _Steps)]
        rows = [place for place, part in enumerate(reading) if isinstance(part, _Rows)]
        if not steps or not rows:
            continue
        pair = pairing.rows[row]
        first, second = (
            np.take(np.moveaxis(_split(tensor, reading, batch), (rows[0], steps[0]), (0, 1)), pair[run], axis=0)
            for run, (tensor, batch) in enumerate(((before, pairing.before), (after, pairing.after)))
        )
        shared = min(len(first), len(second))
        return [gap(one, other) for one, other in zip(first[:shared], second[:shared], strict=True)]
    return None


def chunks_in(shapes: Sequence[Sequence[int]], batches: Sequence[Geometry]) -> Iterator[int]:
    """The sizes of the chunks that one tensor's steps are cut into, by two axes `[chunks, steps of one]` side by side.

    Args:
        shapes: Its shape in each of the batches.
        batches: These, of widths that make different numbers of chunks.
    """
    for place in range(len(shapes[0]) - 1):
        sizes = {shape[place + 1] for shape in shapes}
        size = next(iter(sizes))
        if len(sizes) > 1 or size < 2 or len({shape[place] for shape in shapes}) == 1:
            continue
        if all(_holds_chunks(shape[place], size, batch) for shape, batch in zip(shapes, batches, strict=True)):
            yield size


def chunks_between(tensors: Sequence[Sequence[Sequence[int]]], batches: Sequence[Geometry]) -> Iterator[int]:
    """The sizes of chunks, by an axis padded to whole chunks in one tensor, and one of their number in another.

    Args:
        tensors: Of each tensor its shape in each of the batches.
        batches: These, of widths that make different numbers of chunks.
    """
    axes = {sizes for shapes in tensors for sizes in zip(*shapes, strict=True) if len(set(sizes)) > 1}
    for wholes, counts in itertools.product(axes, axes):
        size, rest = divmod(wholes[0], counts[0])
        if size < 2 or rest or any(whole != size * count for whole, count in zip(wholes, counts, strict=True)):
            continue
        if all(count == -(-batch.width // size) for count, batch in zip(counts, batches, strict=True)):
            yield size


def _holds_chunks(count: int, size: int, batch: Geometry) -> bool:
    """Whether there are as many chunks as a batch has, of one row or of all of them."""
    chunks = -(-batch.width // size)
    return count in (chunks, batch.rows * chunks)


def _without_chunks(
    before: Array, after: Array, larger: tuple[int, ...] | None, pairing: Pairing
) -> tuple[Array, Array, tuple[int, ...] | None]:
    """Two tensors whose chunks are laid side by side again, `[chunks, steps of one]` as one axis of steps."""
    if not pairing.chunks or before.ndim != after.ndim:
        return before, after, larger
    for place in range(before.ndim - 1):
        size = before.shape[place + 1]
        if size not in pairing.chunks or after.shape[place + 1] != size:
            continue
        if _holds_chunks(before.shape[place], size, pairing.before) and _holds_chunks(
            after.shape[place], size, pairing.after
        ):
            shapes = [_merged(shape, place) for shape in (before.shape, after.shape)]
            if larger is not None and len(larger) == before.ndim:
                larger = _merged(larger, place)
            return before.reshape(shapes[0]), after.reshape(shapes[1]), larger
    return before, after, larger


def _merged(shape: Sequence[int], place: int) -> tuple[int, ...]:
    """A shape with an axis and the one behind it as one."""
    return (*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])


def padding_of(tensor: Array, geometry: Geometry) -> Array | None:
    """The values that a tensor with rows and steps holds at padding; None where it has not one axis of each."""
    if tensor.shape.count(geometry.rows) != 1 or tensor.shape.count(geometry.width) != 1:
        return None
    order = (tensor.shape.index(geometry.rows), tensor.shape.index(geometry.width))
    valid = np.arange(geometry.width) < np.asarray(geometry.lengths)[:, None]
    padding: Array = np.moveaxis(tensor, order, (0, 1))[~valid]
    return padding


def _readings(
    before: Sequence[int], after: Sequence[int], pairing: Pairing, larger: Sequence[int] | None
) -> Iterator[_AxisReading]:
    """The ways to read a tensor's axes, the likeliest first."""
    seen = [(pairing.before, before), (pairing.after, after)]
    if larger is not None and pairing.larger is not None and len(larger) == len(before):
        seen.append((pairing.larger, larger))
    batches = [batch for batch, _ in seen]
    axes = [list(_axis(sizes, batches, pairing)) for sizes in zip(*(shape for _, shape in seen), strict=True)]
    for parts in itertools.product(*axes):
        yield tuple(itertools.chain.from_iterable(parts))


def _axis(sizes: Sequence[int], batches: Sequence[Geometry], pairing: Pairing) -> Iterator[_AxisReading]:
    """The ways to read an axis that has these sizes in these batches."""
    exact = [part for part in _EXACT if _fits((part,), sizes, batches)]
    if exact:
        yield from ((part,) for part in exact)
        return
    same = len(set(sizes)) == 1
    if same and (sizes[0] == 1 or sizes[0] in pairing.known_sizes):
        yield (_Other(sizes[0]),)
        return
    if list(sizes) == [batch.valid_steps for batch in batches]:
        if pairing.is_same_rows:
            yield (_Other(sizes[0]),)
        return
    compound = _compound(sizes[0], batches[0], pairing.chunks)
    found = [reading for reading in compound if _fits(reading, sizes, batches)]
    whole = next((reading for reading in _rounded_up(sizes[0], batches[0]) if _fits(reading, sizes, batches)), None)
    yield from found
    if whole is not None and not found:
        yield whole
    if same and not found:
        yield (_Other(sizes[0]),)


def _fits(reading: _AxisReading, sizes: Sequence[int], batches: Sequence[Geometry]) -> bool:
    return all(
        math.prod(part.size(batch) for part in reading) == size for size, batch in zip(sizes, batches, strict=True)
    )


def _rounded_up(size: int, batch: Geometry) -> Iterator[_AxisReading]:
    """Steps padded to whole chunks; to one chunk of a fixed length as well."""
    for cut in (False, True):
        if size > _Steps(cut).size(batch):
            chunks = [chunk for chunk in range(2, size + 1) if size % chunk == 0]
            yield from ((part,) for chunk in chunks if (part := _Steps(cut, whole=chunk)).size(batch) == size)


def _compound(size: int, batch: Geometry, chunks: frozenset[int]) -> Iterator[_AxisReading]:
    """Rows or steps merged with each other or with something else, in any order; then padded, convolved and pooled."""
    merged: list[_AxisReading] = [(_Rows(), _Steps()), (_Rows(), _Steps(cut=True)), *((part,) for part in _EXACT)]
    merged += [(_Rows(), _Steps(whole=chunk)) for chunk in chunks]
    for parts in merged:
        whole = math.prod(part.size(batch) for part in parts)
        if size % whole == 0:
            rest = () if size == whole else (_Other(size // whole),)
            yield from itertools.permutations((*parts, *rest))
    for cut in (False, True):
        added = size - _Steps(cut).size(batch)
        if 0 < added <= _LARGEST_SHIFT:
            yield from ((_Steps(cut, shift, added - shift),) for shift in range(added + 1))
        elif _LARGEST_SHIFT < added <= _LARGEST_PADDING:
            yield from ((_Steps(cut, shift, added - shift),) for shift in (0, added, added // 2))
        elif -_LARGEST_SHIFT <= added < 0:
            yield (_Steps(cut, added),)
        strides = (*_STRIDES, *(chunk for chunk in sorted(chunks) if chunk not in _STRIDES))
        yield from ((_Steps(cut, stride=stride, up=up),) for stride in strides for up in (False, True))


def _shared(
    before: Array, after: Array, reading: _AxisReading, pairing: Pairing, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Array, Array]]:
    """The parts of two tensors that should be equal, as pairs of arrays of one shape."""
    first, second = _split(before, reading, pairing.before), _split(after, reading, pairing.after)
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


def _valid(reading: _AxisReading, length: int) -> tuple[slice, ...]:
    return tuple(part.valid(length) if isinstance(part, _Steps) else slice(None) for part in reading)


def _split(tensor: Array, reading: _AxisReading, batch: Geometry) -> Array:
    """A tensor with its merged axes apart."""
    return tensor.reshape([part.size(batch) for part in reading])
