"""Finds the axes of rows and steps in a model's inner tensors by their sizes, and compares two runs at valid steps.

A check uses row counts and widths that occur nowhere else in the model (primes). So an axis of such a size holds the
rows or the steps, even after transposes and merges. An axis a little longer or shorter than the steps comes from
padding or a convolution; one of half their number comes from pooling.

A *reading* says what each axis of a tensor holds, an axis that merges several as several parts. For 7 rows, a width of
23 and 4 heads:

    shape       reading
    [7, 23, 4]  ("rows", _Steps(), 4)
    [28, 23]    ("rows", 4, _Steps()), and (4, "rows", _Steps())
    [7, 11]     ("rows", _Steps(stride=2))

If a shape can be read in several ways, the reading with the smallest difference is used: a wrong reading compares
padding too, and does not agree by accident.

Of a packed batch, in which all sequences are in one row, an axis of the number of sequences holds one value for each
sequence; an axis of steps holds those of all sequences, with or without the padding after the last one.

In all functions, `before` and `after` are one tensor in the two runs, `pairing.before` and `pairing.after` the batches
of these runs, and `larger_shape` is the tensor's shape in the third batch `pairing.larger`, None if that is not known.
An axis with the same size in the larger batch holds neither rows nor steps.
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
    """Yields the sizes of chunks, in steps, of a tensor with two neighbouring axes `[chunks, steps of a chunk]`.

    Such axes are found by their sizes: the number of chunks differs between batches, the steps of a chunk do not.

    Args:
        shapes: The shapes of the tensor in the batches.
        batches: The batches.
    """
    for axis in range(len(shapes[0]) - 1):
        chunk_counts, chunk_sizes = ({shape[index] for shape in shapes} for index in (axis, axis + 1))
        size = min(chunk_sizes)
        if len(chunk_counts) == 1 or len(chunk_sizes) > 1 or size < 2:
            continue
        if all(_is_count_of_chunks(shape[axis], size, batch) for shape, batch in zip(shapes, batches, strict=True)):
            yield size


def chunks_between(tensors: Sequence[Sequence[Sequence[int]]], batches: Sequence[Geometry]) -> Iterator[int]:
    """Yields the sizes of chunks, in steps, of a model that has the chunks and their steps in two tensors.

    One axis is then the width, padded to whole chunks, and another one the number of chunks: with chunks of 4 steps,
    batches of 6 and 9 steps have axes of 8 and 12, and of 2 and 3. All pairs of axes of all tensors are tried.

    Args:
        tensors: For each tensor, its shapes in the batches.
        batches: The batches.
    """
    # For each axis, its size in every batch. An axis of the same size in all batches is neither of the two.
    axes = {sizes for shapes in tensors for sizes in zip(*shapes, strict=True) if len(set(sizes)) > 1 and min(sizes)}
    for padded_sizes, chunk_counts in itertools.product(axes, axes):
        size = padded_sizes[0] // chunk_counts[0]
        if size > 1 and all(
            padded_size == size * count and count == -(-batch.width // size)
            for padded_size, count, batch in zip(padded_sizes, chunk_counts, batches, strict=True)
        ):
            yield size


def _is_count_of_chunks(count: int, size: int, batch: Geometry) -> bool:
    """Whether `count` is the number of chunks of `size` steps in one row, or in all rows, of a batch."""
    chunks = -(-batch.width // size)
    return count in (chunks, batch.rows * chunks)


def _without_chunks(
    before: Array, after: Array, larger_shape: _Shape | None, pairing: Pairing
) -> tuple[Array, Array, _Shape | None]:
    """Returns both tensors and the larger shape with the axes `[chunks, steps of a chunk]` merged into one of steps.

    They are returned unchanged if no two neighbouring axes are chunks and their steps.
    """
    for axis in range(before.ndim - 1):
        size = before.shape[axis + 1]
        if size not in pairing.chunks or after.shape[axis + 1] != size:
            continue
        runs = ((before, pairing.before), (after, pairing.after))
        if all(_is_count_of_chunks(tensor.shape[axis], size, batch) for tensor, batch in runs):
            if larger_shape is not None and len(larger_shape) == before.ndim:
                larger_shape = _merged(larger_shape, axis)
            return before.reshape(_merged(before.shape, axis)), after.reshape(_merged(after.shape, axis)), larger_shape
    return before, after, larger_shape


def _merged(shape: _Shape, axis: int) -> _Shape:
    """The shape with `axis` and the axis after it merged into one."""
    return (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


_MAX_READINGS: Final = 96  # at most this many readings of a tensor are compared
_MAX_SHIFT: Final = 8  # steps by which an axis may differ from the width (padding, class tokens, convolutions)
_MAX_PADDING: Final = 64  # steps by which it may be longer, if all are in front, all at the end, or half on each side
_STRIDES: Final = (2, 3, 4)  # strides of pooling that are recognised


@dataclass(frozen=True, slots=True)
class _Steps:
    """A part of a reading: an axis that holds the steps of the sequences, and how the model changed their number.

    The model starts with the width (or another number, see `_source_steps`), pads it to a multiple, pools it by a
    stride, and adds steps at the start and at the end.
    """

    to_longest: bool = False  # Whether the model cut the axis from the width to the longest row
    shift: int = 0  # Steps added at the start (negative: removed at the end)
    appended: int = 0  # Steps added at the end
    stride: int = 1  # Steps that pooling merges into one
    rounds_up: bool = False  # Whether pooling keeps an incomplete group of steps at the end
    multiple: int = 1  # The number of steps is padded to a multiple of this
    is_packed_row: bool = False  # Whether the axis is that of a packed row without its padding
    is_left_aligned: bool = False  # Whether the model moved each sequence to the start of its row

    def size(self, batch: Geometry) -> int:
        """The size of the axis in a batch, in steps."""
        steps = -(-self._source_steps(batch) // self.multiple) * self.multiple
        return (-(-steps // self.stride) if self.rounds_up else steps // self.stride) + self.shift + self.appended

    def _source_steps(self, batch: Geometry) -> int:
        """The number of steps before padding, pooling and shift: all valid ones, those of the longest row, or width."""
        if self.is_packed_row:
            return batch.valid_steps
        return batch.longest if self.to_longest else batch.width

    def valid(self, batch: Geometry, row: int) -> slice:
        """The positions on this axis that hold the valid steps of one row of a batch."""
        length, start = batch.lengths[row], 0
        # 1. Where the sequence starts in its row: at 0 with right padding, or if the model moved the sequences to the
        #    start of their rows, or made rows of a packed row.
        if not (self.is_left_aligned or batch.layout.is_right_padded or (self.to_longest and batch.is_packed)):
            start = max(int(batch.layout.starts(batch.lengths, self._source_steps(batch))[row]), 0)
        # 2. Of pooled steps, all that have a valid one in them
        if self.stride > 1:
            return slice(start // self.stride, -(-(start + length) // self.stride))
        # 3. Else the valid steps, moved by steps that were added in front of them, or without those that were removed
        start += max(self.shift, 0)
        return slice(start, start + max(length + min(self.shift, 0), 0))


# What an axis, or a part of a merged one, holds: rows, or steps, or neither; then the part is a number, its size
_AxisPart = Literal["rows"] | int | _Steps
_AxisReading = tuple[_AxisPart, ...]
# An axis that has exactly the size of one of these parts is read as this part
_EXACT: Final[_AxisReading] = ("rows", _Steps(), _Steps(to_longest=True))
_EXACT_OF_PACKED: Final[_AxisReading] = (*_EXACT, _Steps(is_packed_row=True))


def _part_size(part: _AxisPart, batch: Geometry) -> int:
    """The size of a part of a reading in a batch."""
    if isinstance(part, _Steps):
        return part.size(batch)
    return part if isinstance(part, int) else batch.rows


def difference(
    before: Array, after: Array, pairing: Pairing, larger_shape: _Shape | None = None, *, of_any_reading: bool = False
) -> float | None:
    """The `relative_difference` of a tensor in two runs, at the valid steps of the rows that both batches hold.

    - Of several readings, and orders of the rows, the smallest difference counts.
    - With `of_any_reading`, the largest counts. Readings by which the model moved the sequences are then left out.
    - It is infinite if the tensors have different numbers of axes.
    - It is None if an axis has no reading.
    """
    if before.ndim != after.ndim:
        return float("inf")
    differences = []
    for tensors in _without_padding_sequences(before, after, larger_shape, pairing):
        first, second, larger = _without_chunks(*tensors, pairing)
        readings: Iterator[_AxisReading] = itertools.islice(
            _readings(first.shape, second.shape, pairing, larger), _MAX_READINGS
        )
        if not of_any_reading:
            readings = itertools.chain.from_iterable(map(partial(_with_left_aligned, pairing), readings))
        for reading in readings:
            for row_pairs in pairing.orders:  # a tensor may have its rows in the batch's order, or sorted by length
                shared_values = _shared_values(first, second, reading, pairing, row_pairs)
                largest = max((relative_difference(*parts) for parts in shared_values), default=0.0)
                if largest == 0.0 and not of_any_reading:
                    return 0.0
                differences.append(largest)
    decisive = max if of_any_reading else min
    return decisive(differences, default=None)


def differences_along_steps(
    before: Array, after: Array, pairing: Pairing, row: int, larger_shape: _Shape | None = None
) -> list[float] | None:
    """The `relative_difference` of one row at each step that the picture of a leak shows.

    These are all steps of a row that is padded on the right, else the valid ones. `row` is an index into
    `pairing.rows`. None if no reading has an axis of rows and one of steps.
    """
    if before.ndim != after.ndim:
        return None
    before, after, larger_shape = _without_chunks(before, after, larger_shape, pairing)
    for reading in _readings(before.shape, after.shape, pairing, larger_shape):
        part = next((part for part in reading if isinstance(part, _Steps)), None)
        if part is None or "rows" not in reading:
            continue
        axes = (reading.index("rows"), reading.index(part))
        steps_of_runs = []  # for each run, the values `[steps, ...]` of the row
        for tensor, batch, index in zip(
            (before, after), (pairing.before, pairing.after), pairing.rows[row], strict=True
        ):
            rows_and_steps_first = np.moveaxis(_with_split_axes(tensor, reading, batch), axes, (0, 1))
            # With right padding all steps are drawn, else only the valid ones, which start elsewhere in each run.
            drawn_steps = slice(None) if batch.layout.is_right_padded else part.valid(batch, index)
            steps_of_runs.append(rows_and_steps_first[index][drawn_steps])
        return [*map(relative_difference, *steps_of_runs)]
    return None


def values_at_padding(tensor: Array, batch: Geometry) -> Array | None:
    """The values `[padded steps, ...]` of a tensor at padding.

    None unless exactly one axis has the size of the rows and exactly another that of the width; packed, that of the
    width.
    """
    sizes = [batch.width] if batch.is_packed else [batch.rows, batch.width]
    if len(set(sizes)) < len(sizes) or any(tensor.shape.count(size) != 1 for size in sizes):
        return None
    rows_and_steps_first = np.moveaxis(tensor, [tensor.shape.index(size) for size in sizes], range(len(sizes)))
    return rows_and_steps_first[~batch.valid.squeeze(0) if batch.is_packed else ~batch.valid]


def _readings(before: _Shape, after: _Shape, pairing: Pairing, larger_shape: _Shape | None) -> Iterator[_AxisReading]:
    """Yields the possible readings of a tensor's axes, the most likely first: all combinations of its axes."""
    shapes, batches = _shapes_and_batches(before, after, pairing, larger_shape)
    axes = [list(_axis_readings(sizes, batches, pairing)) for sizes in zip(*shapes, strict=True)]
    # One reading of each axis, their parts in one tuple
    yield from (tuple(itertools.chain.from_iterable(parts)) for parts in itertools.product(*axes))


def _shapes_and_batches(
    before: _Shape, after: _Shape, pairing: Pairing, larger_shape: _Shape | None
) -> tuple[list[_Shape], list[Geometry]]:
    """The shapes of a tensor and the batches in which it has them: of both runs, and of the larger batch if known."""
    if larger_shape is None or pairing.larger is None or len(larger_shape) != len(before):
        return [before, after], [pairing.before, pairing.after]
    return [before, after, larger_shape], [pairing.before, pairing.after, pairing.larger]


def _axis_readings(sizes: _Shape, batches: Sequence[Geometry], pairing: Pairing) -> Iterator[_AxisReading]:
    """Yields the possible readings of one axis, the most likely first: those of the first kind that has any.

    1. It has exactly the size of the rows or of the steps.
    2. It has one size in all batches, which is 1 or that of a weight, and holds neither rows nor steps.
    3. It holds the valid steps of all rows, one row after the other. It is then compared as a whole if both batches
       hold the same rows, else it has no reading.
    4. It is merged of several axes, or the model changed the number of steps.
    5. It holds the steps, padded to whole chunks; or it has one size in all batches, as in 2. Both are yielded.

    Args:
        sizes: Its sizes in the batches.
        batches: The batches.
        pairing: The pairing, which knows the sizes of weights and chunks.
    """
    # Kind 1
    exact_parts = _EXACT_OF_PACKED if batches[0].is_packed else _EXACT
    if matching_parts := [part for part in exact_parts if _has_sizes((part,), sizes, batches)]:
        yield from ((part,) for part in matching_parts)
        return
    # Kind 2
    neither = [(sizes[0],)] if len(set(sizes)) == 1 else []
    if neither and (sizes[0] == 1 or sizes[0] in pairing.known_sizes):
        yield from neither
        return
    # Kind 3
    if list(sizes) == [batch.valid_steps for batch in batches]:
        if pairing.is_same_rows:
            yield (sizes[0],)
        return
    # Kinds 4 and 5
    candidates = _merged_or_changed_steps(sizes[0], batches[0], pairing.chunks)
    readings = [reading for reading in candidates if _has_sizes(reading, sizes, batches)]
    if not readings:
        padded = (reading for reading in _padded_to_chunks(sizes[0], batches[0]) if _has_sizes(reading, sizes, batches))
        readings = [*itertools.islice(padded, 1), *neither]
    yield from readings


def _has_sizes(reading: _AxisReading, sizes: _Shape, batches: Sequence[Geometry]) -> bool:
    """Whether an axis with this reading has these sizes in these batches."""
    return all(
        math.prod(_part_size(part, batch) for part in reading) == size
        for size, batch in zip(sizes, batches, strict=True)
    )


def _padded_to_chunks(size: int, batch: Geometry) -> Iterator[_AxisReading]:
    """Yields the readings of an axis of this size in `batch` as steps that are padded to a multiple of a chunk.

    Each divisor of the size is tried as the size of a chunk; the size itself is one chunk for all steps.
    """
    for to_longest in (False, True):  # the steps of the whole width, or only up to the longest sequence
        if size > _Steps(to_longest).size(batch):
            chunks = [chunk for chunk in range(2, size + 1) if size % chunk == 0]
            yield from ((part,) for chunk in chunks if (part := _Steps(to_longest, multiple=chunk)).size(batch) == size)


def _merged_or_changed_steps(size: int, batch: Geometry, chunks: frozenset[int]) -> Iterator[_AxisReading]:
    """Yields the readings of an axis of this size in this batch that is not exactly the rows or the steps.

    - Rows or steps are merged with each other or with another axis.
    - The steps are a few more or fewer, as after padding or a convolution.
    - The steps are pooled.
    """
    merges: list[_AxisReading] = [("rows", _Steps()), ("rows", _Steps(to_longest=True)), *((part,) for part in _EXACT)]
    merges += [("rows", _Steps(multiple=chunk)) for chunk in chunks]
    for parts in merges:
        product = math.prod(_part_size(part, batch) for part in parts)
        if size % product == 0:
            yield from itertools.permutations((*parts, *(() if size == product else (size // product,))))
    for to_longest in (False, True):
        extra_steps = size - _Steps(to_longest).size(batch)
        if 0 < extra_steps <= _MAX_SHIFT:
            yield from ((_Steps(to_longest, shift, extra_steps - shift),) for shift in range(extra_steps + 1))
        elif _MAX_SHIFT < extra_steps <= _MAX_PADDING:
            yield from (
                (_Steps(to_longest, shift, extra_steps - shift),) for shift in (0, extra_steps, extra_steps // 2)
            )
        elif -_MAX_SHIFT <= extra_steps < 0:
            yield (_Steps(to_longest, extra_steps),)
        strides = dict.fromkeys((*_STRIDES, *sorted(chunks)))
        # Half of the steps and one more are the frequencies of a real Fourier transform.
        roundings = ((False, 0), (True, 0), (False, 1))
        yield from (
            (_Steps(to_longest, stride=stride, rounds_up=rounds_up, appended=appended),)
            for stride in strides
            for rounds_up, appended in roundings
        )


def _shared_values(
    before: Array, after: Array, reading: _AxisReading, pairing: Pairing, row_pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[Array, Array]]:
    """Yields the values of two tensors that must be equal, by the reading of their axes.

    1. Without an axis of rows, such as a mask of steps for all rows: the values at the steps that are valid in a row.
    2. With one: for each pair of rows, the values of both rows at their valid steps.

    Args:
        before: The tensor in the first run.
        after: The tensor in the second run.
        reading: What each axis of the tensors holds.
        pairing: The batches of both runs, and the pairs of their rows.
        row_pairs: The same pairs as indices into the axes of rows: other numbers, if the model sorted its rows.
    """
    batches = (pairing.before, pairing.after)
    tensors = [_with_split_axes(tensor, reading, batch) for tensor, batch in zip((before, after), batches, strict=True)]
    if "rows" in reading:
        axis = reading.index("rows")
        reading_of_row = reading[:axis] + reading[axis + 1 :]
        for indices, pair in zip(row_pairs, pairing.rows, strict=True):
            rows = [np.take(tensor, index, axis=axis) for tensor, index in zip(tensors, indices, strict=True)]
            yield _at_valid_steps(rows, reading_of_row, batches, pair)
        return
    pairs = pairing.rows
    if pairing.before.layout.is_right_padded:  # the steps of the longest row are those of all other rows, too
        pairs = (max(pairs, key=lambda pair: pairing.before.lengths[pair[0]]),)
    for pair in pairs:
        yield _at_valid_steps(tensors, reading, batches, pair)


def _at_valid_steps(
    tensors: Sequence[Array], reading: _AxisReading, batches: Sequence[Geometry], rows: tuple[int, int]
) -> tuple[Array, Array]:
    """The values of two tensors without an axis of rows, each at the steps that are valid in a row of its batch."""
    before, after = (
        tensor[tuple(part.valid(batch, row) if isinstance(part, _Steps) else slice(None) for part in reading)]
        for tensor, batch, row in zip(tensors, batches, rows, strict=True)
    )
    return before, after


def _with_left_aligned(pairing: Pairing, reading: _AxisReading) -> Iterator[_AxisReading]:
    """Yields a reading, and if rows are not padded on the right, also that of a model that moved them to the start."""
    yield reading
    # Only if both batches have equal sizes: otherwise numbers that are counted over the width would agree after the
    # move, and so hide a leak that begins with them.
    layout = pairing.before.layout
    if "rows" in reading and pairing.before == pairing.after and not layout.is_right_padded and layout.packed is None:
        yield tuple(replace(part, is_left_aligned=True) if isinstance(part, _Steps) else part for part in reading)


def _without_padding_sequences(
    before: Array, after: Array, larger_shape: _Shape | None, pairing: Pairing
) -> Iterator[tuple[Array, Array, _Shape | None]]:
    """Yields both tensors, and the larger shape, without the values of sequences that are the padding of a packed row.

    A packed model may take the padding for further sequences (`Geometry.padding_sequences`). Then an axis with one
    value for each sequence has values for these too, which are dropped: those at the end, as in the order of the steps;
    or, of segment 0, also the one in front, as by the numbers of the segments.
    """
    for in_front in (0, 1) if pairing.before.layout.packed == "segment_ids" else (0,):
        first, second, larger = before, after, larger_shape
        shapes, batches = _shapes_and_batches(before.shape, after.shape, pairing, larger_shape)
        for axis, sizes in enumerate(zip(*shapes, strict=True)) if pairing.before.is_packed else ():
            if all(size == batch.rows + batch.padding_sequences for size, batch in zip(sizes, batches, strict=True)):
                first, second = (
                    np.take(tensor, np.arange(batch.rows) + in_front, axis=axis)
                    for tensor, batch in ((first, pairing.before), (second, pairing.after))
                )
                if larger is not None and len(batches) == 3:
                    larger = (*larger[:axis], batches[2].rows, *larger[axis + 1 :])
        yield first, second, larger


def _with_split_axes(tensor: Array, reading: _AxisReading, batch: Geometry) -> Array:
    """The tensor reshaped, so that each part of the reading has an axis of its own."""
    return tensor.reshape([_part_size(part, batch) for part in reading])
