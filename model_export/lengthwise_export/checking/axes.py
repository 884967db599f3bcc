"""Finds the axes of rows and steps in a model's inner tensors by their sizes, and compares two runs at valid steps.

A check uses row counts and widths that occur nowhere else in the model (primes). So an axis of such a size holds the
rows or the steps, even after transposes and merges. An axis a little longer or shorter than the steps comes from
padding or a convolution; one of half their number comes from pooling. If a shape can be read in several ways, the
reading with the smallest difference is used: a wrong reading compares padding too, and does not agree by accident.

Of a packed batch, whose rows are all in one, an axis of the number of sequences holds one value for each; an axis of
steps holds all of them, one sequence behind the other, with or without the padding behind the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import numpy as np

from lengthwise_export.checking.baseline import relative_difference
from lengthwise_export.checking.trials import Geometry, Pairing
from lengthwise_export.layouts import Array

_Shape = tuple[int, ...]


def chunks_in(shapes: Sequence[Sequence[int]], batches: Sequence[Geometry]) -> Iterator[int]:
    """Chunk sizes that one tensor shows: two neighbouring axes `[chunks, steps of a chunk]`."""
    for axis in range(len(shapes[0]) - 1):
        sizes = {shape[axis + 1] for shape in shapes}
        size = next(iter(sizes))
        if len(sizes) > 1 or size < 2 or len({shape[axis] for shape in shapes}) == 1:
            continue
        if all(_is_count_of_chunks(shape[axis], size, batch) for shape, batch in zip(shapes, batches, strict=True)):
            yield size


def chunks_between(tensors: Sequence[Sequence[Sequence[int]]], batches: Sequence[Geometry]) -> Iterator[int]:
    """Chunk sizes that two tensors show: one axis is padded to whole chunks, another counts the chunks."""
    axes = {sizes for shapes in tensors for sizes in zip(*shapes, strict=True) if len(set(sizes)) > 1 and min(sizes)}
    for wholes, counts in itertools.product(axes, axes):
        size, rest = divmod(wholes[0], counts[0])
        if size < 2 or rest or any(whole != size * count for whole, count in zip(wholes, counts, strict=True)):
            continue
        if all(count == -(-batch.width // size) for count, batch in zip(counts, batches, strict=True)):
            yield size


def _is_count_of_chunks(count: int, size: int, batch: Geometry) -> bool:
    """Whether `count` is the number of chunks of one row, or of all rows, of a batch."""
    chunks = -(-batch.width // size)
    return count in (chunks, batch.rows * chunks)


def _without_chunks(
    before: Array, after: Array, larger: _Shape | None, pairing: Pairing
) -> tuple[Array, Array, _Shape | None]:
    """Merges the axes `[chunks, steps of a chunk]` of both tensors into one axis of steps."""
    for axis in range(before.ndim - 1):
        size = before.shape[axis + 1]
        if size not in pairing.chunks or after.shape[axis + 1] != size:
            continue
        runs = ((before, pairing.before), (after, pairing.after))
        if all(_is_count_of_chunks(tensor.shape[axis], size, batch) for tensor, batch in runs):
            if larger is not None and len(larger) == before.ndim:
                larger = _merged(larger, axis)
            return before.reshape(_merged(before.shape, axis)), after.reshape(_merged(after.shape, axis)), larger
    return before, after, larger


def _merged(shape: _Shape, axis: int) -> _Shape:
    """A shape with an axis and the next one merged."""
    return (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


_MAX_READINGS: Final = 96  # at most this many readings of a tensor's axes are compared
_MAX_SHIFT: Final = 8  # An axis of steps may differ from the width by so many (padding, class tokens, convolutions)
_MAX_PADDING: Final = 64  # Or longer by so many, if all are in front, all behind, or half on each side
_STRIDES: Final = (2, 3, 4)  # strides of pooling that are recognised


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of the sequences."""

    cut: bool = False  # Whether the axis is as long as the longest row, instead of the width
    shift: int = 0  # Steps prepended (negative: removed at the end)
    after: int = 0  # Steps appended
    stride: int = 1  # Steps merged into one by pooling
    up: bool = False  # Whether an incomplete group of `stride` steps at the end counts as one too
    whole: int = 1  # The number of steps is padded to a multiple of this
    joined: bool = False  # Whether the axis is that of a packed row without its padding
    moved: bool = False  # Whether the model moved each sequence to the start of its row

    def size(self, batch: Geometry) -> int:
        steps = -(-self._own(batch) // self.whole) * self.whole
        return (-(-steps // self.stride) if self.up else steps // self.stride) + self.shift + self.after

    def _own(self, batch: Geometry) -> int:
        """The number of steps that the axis was made of."""
        return batch.valid_steps if self.joined else batch.longest if self.cut else batch.width

    def valid(self, batch: Geometry, row: int) -> slice:
        """The valid positions of a row of a batch."""
        length, start = batch.lengths[row], 0
        # A model that makes rows of a packed row again pads them on the right.
        if not (self.moved or batch.layout.is_usual or (self.cut and batch.is_packed)):
            start = max(int(batch.layout.starts(batch.lengths, self._own(batch))[row]), 0)
        if self.stride > 1:
            return slice(start // self.stride, -(-(start + length) // self.stride))
        begin = start + max(self.shift, 0)
        return slice(begin, begin + max(length + min(self.shift, 0), 0))


_AxisPart = Literal["rows"] | int | _Steps  # What an axis, or a part of a merged one, holds; a number: neither
_AxisReading = tuple[_AxisPart, ...]
_EXACT: Final[_AxisReading] = ("rows", _Steps(), _Steps(cut=True))
_EXACT_OF_PACKED: Final[_AxisReading] = (*_EXACT, _Steps(joined=True))


def _size(part: _AxisPart, batch: Geometry) -> int:
    if isinstance(part, _Steps):
        return part.size(batch)
    return part if isinstance(part, int) else batch.rows


def difference(
    before: Array, after: Array, pairing: Pairing, larger: _Shape | None = None, *, of_any_reading: bool = False
) -> float | None:
    """The `relative_difference` of a tensor in two runs, at valid steps of shared rows; None if no axis is known.

    It is the smallest of all readings; `of_any_reading`, the largest of those with the steps where the batch has them.
    `larger` is its shape in the batch `pairing.larger`: an axis of the same size there holds neither rows nor steps.
    """
    if before.ndim != after.ndim:
        return float("inf")
    if pairing.before.is_packed:
        before, after, larger = _without_padding_sequences(before, after, larger, pairing)
    before, after, larger = _without_chunks(before, after, larger, pairing)
    differences = []
    readings: Iterator[_AxisReading] = itertools.islice(
        _readings(before.shape, after.shape, pairing, larger), _MAX_READINGS
    )
    if not of_any_reading:
        readings = itertools.chain.from_iterable(map(partial(_with_moved, pairing), readings))
    for reading in readings:
        for rows in pairing.orders:
            apart = max(
                (relative_difference(*both) for both in _shared(before, after, reading, pairing, rows)), default=0.0
            )
            if apart == 0.0 and not of_any_reading:
                return 0.0
            differences.append(apart)
    return (max if of_any_reading else min)(differences, default=None)


def along_steps(
    before: Array, after: Array, pairing: Pairing, row: int, larger: _Shape | None = None
) -> list[float] | None:
    """The difference of one row at each step, padding included; None without an axis of rows and one of steps."""
    if before.ndim != after.ndim:
        return None
    before, after, larger = _without_chunks(before, after, larger, pairing)
    for reading in _readings(before.shape, after.shape, pairing, larger):
        part = next((part for part in reading if isinstance(part, _Steps)), None)
        if part is None or "rows" not in reading:
            continue
        axes = (reading.index("rows"), reading.index(part))
        first, second = (
            np.moveaxis(_split(tensor, reading, batch), axes, (0, 1))[index][_shown(part, batch, index)]
            for tensor, batch, index in zip(
                (before, after), (pairing.before, pairing.after), pairing.rows[row], strict=True
            )
        )
        return [relative_difference(one, other) for one, other in zip(first, second, strict=False)]
    return None


def padding_of(tensor: Array, geometry: Geometry) -> Array | None:
    """A tensor's values at padding; None unless exactly one axis has the size of the rows and one that of the width."""
    sizes = [geometry.width] if geometry.is_packed else [geometry.rows, geometry.width]
    if any(tensor.shape.count(size) != 1 for size in sizes):
        return None
    in_front = np.moveaxis(tensor, [tensor.shape.index(size) for size in sizes], range(len(sizes)))
    padding: Array = in_front[~geometry.valid.squeeze(0) if geometry.is_packed else ~geometry.valid]
    return padding


def _readings(before: _Shape, after: _Shape, pairing: Pairing, larger: _Shape | None) -> Iterator[_AxisReading]:
    """The possible readings of a tensor's axes, the most likely first."""
    shapes, batches = [before, after], [pairing.before, pairing.after]
    if larger is not None and pairing.larger is not None and len(larger) == len(before):
        shapes.append(larger)
        batches.append(pairing.larger)
    axes = [list(_axis(sizes, batches, pairing)) for sizes in zip(*shapes, strict=True)]
    yield from (tuple(itertools.chain.from_iterable(parts)) for parts in itertools.product(*axes))


def _axis(sizes: _Shape, batches: Sequence[Geometry], pairing: Pairing) -> Iterator[_AxisReading]:
    """The possible readings of an axis that has these sizes in these batches."""
    known = _EXACT_OF_PACKED if batches[0].is_packed else _EXACT
    if exact := [part for part in known if _fits((part,), sizes, batches)]:
        yield from ((part,) for part in exact)
        return
    own = (sizes[0],) if len(set(sizes)) == 1 else None
    if own is not None and (sizes[0] == 1 or sizes[0] in pairing.known_sizes):
        yield own
        return
    if list(sizes) == [batch.valid_steps for batch in batches]:
        if pairing.is_same_rows:
            yield (sizes[0],)
        return
    compound = _compound(sizes[0], batches[0], pairing.chunks)
    readings = [reading for reading in compound if _fits(reading, sizes, batches)]
    yield from readings
    if readings:
        return
    whole = next((reading for reading in _rounded_up(sizes[0], batches[0]) if _fits(reading, sizes, batches)), None)
    yield from (reading for reading in (whole, own) if reading is not None)


def _fits(reading: _AxisReading, sizes: _Shape, batches: Sequence[Geometry]) -> bool:
    return all(
        math.prod(_size(part, batch) for part in reading) == size for size, batch in zip(sizes, batches, strict=True)
    )


def _rounded_up(size: int, batch: Geometry) -> Iterator[_AxisReading]:
    """Readings as steps padded to whole chunks, or to one chunk of a fixed size."""
    for cut in (False, True):
        if size > _Steps(cut).size(batch):
            chunks = [chunk for chunk in range(2, size + 1) if size % chunk == 0]
            yield from ((part,) for chunk in chunks if (part := _Steps(cut, whole=chunk)).size(batch) == size)


def _compound(size: int, batch: Geometry, chunks: frozenset[int]) -> Iterator[_AxisReading]:
    """Readings as rows or steps merged with each other or another axis, or as padded, convolved or pooled steps."""
    merged: list[_AxisReading] = [("rows", _Steps()), ("rows", _Steps(cut=True)), *((part,) for part in _EXACT)]
    merged += [("rows", _Steps(whole=chunk)) for chunk in chunks]
    for parts in merged:
        whole = math.prod(_size(part, batch) for part in parts)
        if size % whole == 0:
            rest = () if size == whole else (size // whole,)
            yield from itertools.permutations((*parts, *rest))
    for cut in (False, True):
        added = size - _Steps(cut).size(batch)
        if 0 < added <= _MAX_SHIFT:
            yield from ((_Steps(cut, shift, added - shift),) for shift in range(added + 1))
        elif _MAX_SHIFT < added <= _MAX_PADDING:
            yield from ((_Steps(cut, shift, added - shift),) for shift in (0, added, added // 2))
        elif -_MAX_SHIFT <= added < 0:
            yield (_Steps(cut, added),)
        strides = dict.fromkeys((*_STRIDES, *sorted(chunks)))
        # Half of the steps and one more are the frequencies of a real Fourier transform.
        rounded = ((False, 0), (True, 0), (False, 1))
        yield from ((_Steps(cut, stride=stride, up=up, after=more),) for stride in strides for up, more in rounded)


def _shared(
    before: Array, after: Array, reading: _AxisReading, pairing: Pairing, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Array, Array]]:
    """The parts of two tensors that must be equal, as pairs of arrays of the same shape."""
    first, second = _split(before, reading, pairing.before), _split(after, reading, pairing.after)
    batches = (pairing.before, pairing.after)
    if "rows" not in reading:
        rows = pairing.rows
        if pairing.before.layout.is_usual:  # the steps of the longest row are those of all others, too
            rows = (max(rows, key=lambda pair: pairing.before.lengths[pair[0]]),)
        for own in rows:
            mine, its = (_valid(reading, batch, row) for batch, row in zip(batches, own, strict=True))
            yield first[mine], second[its]
        return
    axis = reading.index("rows")
    rest = reading[:axis] + reading[axis + 1 :]
    for (row, other), own in zip(pairs, pairing.rows, strict=True):
        mine, its = (_valid(rest, batch, index) for batch, index in zip(batches, own, strict=True))
        yield np.take(first, row, axis=axis)[mine], np.take(second, other, axis=axis)[its]


def _valid(reading: _AxisReading, batch: Geometry, row: int) -> tuple[slice, ...]:
    return tuple(part.valid(batch, row) if isinstance(part, _Steps) else slice(None) for part in reading)


def _shown(part: _Steps, batch: Geometry, row: int) -> slice:
    """The steps of a row in a picture: all of a row that is padded behind, else the valid ones."""
    return slice(None) if batch.layout.is_usual else part.valid(batch, row)


def _with_moved(pairing: Pairing, reading: _AxisReading) -> Iterator[_AxisReading]:
    """A reading; and if rows are not padded at the end, another: as if the model had moved each to the start."""
    yield reading
    # In another batch even numbers that are counted over the width would agree, and so hide a leak that they begin.
    layout = pairing.before.layout
    if "rows" in reading and pairing.before == pairing.after and not layout.is_usual and layout.packed is None:
        yield tuple(replace(part, moved=True) if isinstance(part, _Steps) else part for part in reading)


def _without_padding_sequences(
    before: Array, after: Array, larger: _Shape | None, pairing: Pairing
) -> tuple[Array, Array, _Shape | None]:
    """Drops the padding's entries from axes with one value for each sequence.

    In a packed row the padding may count as further sequences (`Geometry.more_sequences`).
    """
    batches = [pairing.before, pairing.after]
    shapes = [before.shape, after.shape]
    if larger is not None and pairing.larger is not None and len(larger) == before.ndim:
        batches.append(pairing.larger)
        shapes.append(larger)
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        if all(size == batch.rows + sum(batch.more_sequences) for size, batch in zip(sizes, batches, strict=True)):
            first = pairing.before.more_sequences[0]
            before, after = (
                np.take(tensor, np.arange(batch.rows) + first, axis=axis)
                for tensor, batch in ((before, pairing.before), (after, pairing.after))
            )
            if len(batches) == 3:
                larger = (*shapes[2][:axis], batches[2].rows, *shapes[2][axis + 1 :])
                shapes[2] = larger
    return before, after, larger


def _split(tensor: Array, reading: _AxisReading, batch: Geometry) -> Array:
    """The tensor reshaped so that each part of a merged axis has an axis of its own."""
    return tensor.reshape([_size(part, batch) for part in reading])
