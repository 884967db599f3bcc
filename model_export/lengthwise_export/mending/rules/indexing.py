"""Rules for operators that pick by indices: what counts from the end has to count from each row's own end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.engine import along, rule, values
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    INT64,
    DataTensor,
    KnownTensor,
    Size,
    Table,
    Value,
    axis_text,
    groups_of_one,
    has_size_one,
)

_COUNTS_FROM_END: Final = "it counts from the end of the padded width, not of the row"  # a cause


@rule("Slice")
def _slice(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a cut of some axes, as NumPy's `start:end:step`: each axis in turn, by `_sliced`."""
    starts, ends = mender.sizes_input(1, "its starts are").elements(), mender.sizes_input(2, "its ends are").elements()
    axes, steps = mender.axes_of_node(value.rank, 3), mender.constant_input(4)
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, stride in zip(axes or range(len(starts)), starts, ends, strides, strict=True):
        value = _sliced(mender, value, axis, start, end, stride)
    return value


def _sliced(mender: Mender, value: DataTensor, axis: int, start: Table, end: Table, step: int) -> DataTensor:
    """The tensor cut along an axis of the original, as NumPy's `start:end:step` cuts it.

    1. Nothing is cut off at any length: the value stays.
    2. The start is the same at every length (`x[:, 2:]`, `x[:, :-1]`, `x[:, ::2]`): a Slice with the bounds for the
       width of the batch. In its output, too, a row's padding comes after its own end.
    3. The start depends on the length (`x[:, -3:]`, a flip): each row picks its own positions.
    4. A part of the rows: refused.

    Args:
        mender: The mender.
        value: The tensor.
        axis: The axis.
        start: `[2, lengths]`; a negative number counts from the end.
        end: `[2, lengths]`, in the same way.
        step: Not 0; negative for the reverse order.
    """
    # As in NumPy, negative numbers count from the end, and both numbers are clipped to the axis: to 0 and its size, or
    # for the reverse order to its last position and -1.
    axis_size = mender.axis_size(value.groups[axis])
    table, start, end = axis_size.table, start.astype(np.int64), end.astype(np.int64)
    low, high = (0, table) if step > 0 else (-1, table - 1)
    first = np.clip(np.where(start < 0, start + table, start), low, high)
    stop = np.clip(np.where(end < 0, np.maximum(end, -table - 1) + table, end), low, high)
    # How many positions there are, and the first one at each length
    new_size, starts = Size(np.maximum(-(-(stop - first) // step), 0)), first[0]
    if step == 1 and not starts.any() and new_size.equals(axis_size):  # case 1
        return value
    dim, size = mender.only_dim(value, axis)
    mender.refuse_if(size.is_rows or new_size.depends_on_rows, CROSSES_ROWS)
    mender.refuse_if(not new_size.by_length.any(), "is empty at every length")
    # Case 2
    if step > 0 and (starts == starts[-1])[new_size.by_length > 0].all():
        begin = int(starts[-1])
        is_to_the_end = bool((starts + new_size.by_length * step >= size.by_length).all())
        # The end of the Slice: after its last position, or the end of the axis, or `begin + new size * step`
        if new_size.fixed is not None:
            end_name = mender.writer.constant([begin + (new_size.fixed - 1) * step + 1])
        elif is_to_the_end:
            end_name = mender.writer.constant([np.iinfo(np.int64).max])
        else:
            covered = mender.emit("Mul", [mender.writer.size_at_width(new_size), mender.writer.constant([step])])
            end_name = mender.emit("Add", [covered, mender.writer.constant([begin])]) if begin else covered
        begin_name, dim_name, step_name = (mender.writer.constant([number]) for number in (begin, dim, step))
        name = mender.emit("Slice", [value.name, begin_name, end_name, dim_name, step_name])
        # If steps at the end are cut off, the row has steps after its new own end, and not zeros.
        zero_padded = value.zero_padded and (is_to_the_end or not size.is_time)
        return value.with_name(name, groups=value.groups_with(axis, new_size), zero_padded=zero_padded)
    # Case 3
    value = value.because(_COUNTS_FROM_END if size.is_time else "")
    return mender.take_per_row(value, axis, mender.strided_positions(starts, step, new_size), new_size)


@rule("Gather", takes=along(0))
def _gather(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends a pick of elements by their index along one axis."""
    return _gathered(mender, value, axis, mender.inputs()[1])


def _gathered(mender: Mender, value: DataTensor, axis: int, index: Value) -> DataTensor:
    """The output of a Gather: elements of a tensor along an axis, by an index that is known or data."""
    if isinstance(index, KnownTensor):
        return _gathered_by_numbers(mender, value, axis, index)
    return _gathered_by_data(mender, value, axis, index)


def _gathered_by_numbers(mender: Mender, value: DataTensor, axis: int, index: KnownTensor) -> DataTensor:
    """The output of a Gather with an index whose numbers are known for each length.

    1. It is the same at every length: the node stays. Lengths at which there is no such element are left out.
    2. It depends on the length (`x[:, -1]`): each row picks its own step, counted from its own end.
    3. It picks rows: refused.
    """
    mender.refuse_rows(value.groups[axis])
    dim, size = mender.only_dim(value, axis)
    groups = value.groups_with(axis, *map(mender.fixed_size, index.shape))
    # `[lengths, *shape]`: the index at each length, counted from the start
    numbers = index.table[0]
    axis_size = size.by_length.reshape(-1, *[1] * (numbers.ndim - 1))
    from_start = np.where(numbers < 0, numbers + axis_size, numbers)
    is_each_inside = (from_start >= 0) & (from_start < axis_size)
    is_inside: NDArray[np.bool_] = np.asarray(is_each_inside.reshape(len(from_start), -1).all(axis=1))
    mender.refuse_if(not is_inside.any(), "picks steps that no sequence has")
    mender.require_lengths(is_inside)
    if (from_start == from_start[0]).all():  # case 1
        constant = mender.writer.constant(from_start[0].astype(np.int64))
        return value.with_name(mender.emit("Gather", [value.name, constant], axis=dim), groups=groups)
    # Case 2
    value = value.because(_COUNTS_FROM_END if size.is_time else "")
    mender.refuse_if(len(index.shape) > 1, "picks by a table of indices that depend on the length")
    positions = np.maximum(from_start.reshape(len(from_start), -1), 0).astype(np.int64)
    new_size = mender.fixed_size(positions.shape[1])
    picked = mender.take_per_row(value, axis, mender.writer.per_row(positions), new_size)
    return picked if index.shape else mender.squeezed(picked, [axis])


def _gathered_by_data(mender: Mender, value: DataTensor, axis: int, index: DataTensor) -> DataTensor:
    """The output of a Gather with an index that is data.

    1. The value has rows, the index an axis of rows: refused, since each row would pick from all of them.
    2. The value has rows, the index added rows: each row picks its own steps, and a negative number counts from its own
       end.
    3. The value is a table that is the same for all rows: the node stays. A computed index gets 0 at the padding, where
       it may lie outside of the table.
    """
    dim, size = mender.mixed_dim(value, axis)
    # Case 1
    mender.refuse_if(
        value.rows_dim is not None and any(index_size.is_rows for index_size in index.dim_sizes),
        "picks steps of all rows in each row: gather along the steps",
    )
    mender.refuse_if(index.has_merged_axes, "picks by an index with merged axes")
    groups = value.groups_with(axis, *index.dim_sizes)
    # Case 2
    if index.has_added_rows and value.rows_dim is not None:
        mender.refuse_if(index.rank != 1, "picks by a table of indices that depend on the row")
        positions = _from_own_end(mender, index, size)
        return mender.take_per_row(value.because(positions.cause), axis, positions.name, index.groups[0][0])
    # Case 3
    if index.rows_dim is not None and not index.is_steps:
        index = mender.masked(index, index.time_dims(), 0)
    has_added_rows = value.has_added_rows or index.has_added_rows
    name = mender.emit("Gather", [value.name, index.name], axis=dim)
    if index.has_added_rows and not value.has_added_rows and axis != 0:
        # A Gather puts the dims of the index in the place of `dim`; its first dim, the added rows, goes to the front.
        rank = value.dim_count + index.dim_count - 1
        name = mender.writer.transposed(name, [dim, *(other_dim for other_dim in range(rank) if other_dim != dim)])
    return value.with_name(name, groups=groups, has_added_rows=has_added_rows, zero_padded=False)


def _from_own_end(mender: Mender, index: DataTensor, size: Size) -> DataTensor:
    """Counts an index from the start of a dim: negative numbers count from each row's own end, which is added to them.

    `size` is the size of the dim.
    """
    own_size = KnownTensor(mender.writer.size_at_width(size), size.table)
    (aligned, end), result = mender.align_axes([index, own_size])
    is_negative = mender.emit("Less", [aligned.name, mender.writer.scalar(0, index.dtype)])
    end_name = end.name if index.dtype == INT64 else mender.writer.cast(end.name, index.dtype)
    from_end = mender.emit("Add", [aligned.name, end_name])
    return result.with_name(mender.emit("Where", [is_negative, from_end, aligned.name]))


def _valid_index(mender: Mender, index: DataTensor, size: Size) -> DataTensor:
    """An index along a dim of this size, changed to count from the start, and to be 0 where the index has padding."""
    index = _from_own_end(mender, index, size) if size.is_time else index
    return mender.masked(index, index.time_dims(), 0)


@rule("GatherND")
def _gather_nd(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a pick by an index whose last axis holds an index along each of several axes.

    1. With `batch_dims` of 1, one index after the rows: each row picks from its own steps.
    2. `x[rows, index]`, where `rows` is an index of rows: the same.
    3. One index along the first axis: as Gather.
    4. Several indices: refused.
    """
    index = mender.inputs()[1]
    if isinstance(index, DataTensor) and index.index_columns:
        return _picked_by_columns(mender, value, index.index_columns)
    count = index.shape[-1] if isinstance(index, KnownTensor) else index.groups[-1][0].fixed
    if mender.attribute("batch_dims", 0) == 1 and count == 1 and isinstance(index, DataTensor):
        return _picked_in_own_row(mender, value, index)
    mender.refuse_if(
        mender.attribute("batch_dims", 0) or count != 1,
        f"picks by {count} indexes at once, as adaptive pools and x[i, j] do: pick along one axis",
    )
    # Case 3
    if isinstance(index, KnownTensor):
        index = KnownTensor(mender.writer.squeezed(index.name, [len(index.shape) - 1]), index.table[..., 0])
    else:
        index = replace(mender.squeezed(index, [-1]), is_steps=False)
    return _gathered(mender, value, 0, index)


def _picked_by_columns(mender: Mender, value: DataTensor, columns: Sequence[Value]) -> DataTensor:
    """`value[rows, indices]`, where the columns of the index are an index of rows and `indices`; others are refused."""
    rows, *further = columns
    if len(further) != 1 or not isinstance(rows, DataTensor) or not rows.is_row_index:
        mender.refuse("picks by the numbers of the rows in another order than x[rows, indices]")
    mender.refuse_if(
        not value.has_original_axes or value.rank < 2 or not value.groups[0][0].is_rows,
        "picks by the numbers of the rows from a value whose first axis is not the rows",
    )
    # Both columns get their common shape: `[rows, 1]` or `[rows, n, 1]`, as they were joined along the last axis.
    (_, indices), result = mender.align_axes([replace(rows, is_row_index=False), further[0]])
    mender.refuse_if(
        not 2 <= result.rank <= 3 or result.has_merged_axes or not result.groups[0][0].is_rows,
        "picks steps of each row by an index of more than two axes",
    )
    expanded = mender.emit_with_shape("Expand", indices.name, result.dim_sizes)
    return _picked_in_own_row(mender, value, result.with_name(expanded, dtype=indices.dtype, has_added_rows=False))


def _picked_in_own_row(mender: Mender, value: DataTensor, index: DataTensor) -> DataTensor:
    """Writes `value[row, index[row]]` for an index `[rows, ..., 1]`: a GatherND with `batch_dims` of 1."""
    for tensor in (value, index):
        mender.refuse_if(
            not tensor.has_original_axes or not tensor.groups[0][0].is_rows,
            "picks from one row by the index of another",
        )
    _, size = mender.only_dim(value, 1)
    groups = index.groups[:-1]
    positions = replace(mender.squeezed(index, [-1]), zero_padded=False)
    positions = _valid_index(mender, positions, size)
    name = mender.emit("GatherND", [value.name, mender.writer.unsqueezed(positions.name, [len(groups)])], batch_dims=1)
    picked = value.with_name(name, groups=(*groups, *value.groups[2:]), zero_padded=False)
    return picked.because(positions.cause)


@rule("GatherElements", takes=along(0))
def _gather_elements(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends a pick of elements along one axis, by an index that has the same shape along the others.

    A negative number in the index counts from each row's own end; at its padding, the index gets 0. A table that is the
    same for all rows is repeated for each row. An index that picks from other rows is refused.
    """
    index = mender.data_input(1)
    dim, size = mender.mixed_dim(value, axis)
    mender.refuse_if(
        value.has_added_rows != index.has_added_rows or value.has_merged_axes or index.has_merged_axes,
        "picks from one row by the index of another",
    )
    pairs = [pair for number, pair in enumerate(zip(value.groups, index.groups, strict=True)) if number != axis]
    for group, index_group in pairs:
        mender.refuse_if(
            not mender.matches(group, index_group) and not has_size_one(index_group),
            f"picks from {axis_text(group)} by an index of {axis_text(index_group)}",
        )
        mender.refuse_if(group[0].is_rows and not index_group[0].is_rows, CROSSES_ROWS)
    indices = _valid_index(mender, index, size)
    if indices.has_added_rows and not value.has_added_rows:  # a table for all rows: a copy for each
        shape = mender.emit("Concat", [mender.writer.rows, mender.writer.constant([1] * len(value.dim_sizes))], axis=0)
        name = mender.emit("Expand", [mender.writer.unsqueezed(value.name, [0]), shape])
        value, dim = value.with_name(name, has_added_rows=True), dim + 1
    name = mender.emit("GatherElements", [value.name, indices.name], axis=dim)
    return value.with_name(name, groups=index.groups, zero_padded=False).because(indices.cause)


@rule(
    "Range",
    takes=values,
    requires={
        "its end is computed from the data": lambda _, bounds: all(isinstance(bound, KnownTensor) for bound in bounds)
    },
)
def _range(mender: Mender, bounds: list[KnownTensor]) -> DataTensor:
    """Mends the numbers from a start to a limit.

    1. `arange(rows)`: kept as an index of rows, which only an index may use.
    2. Constant bounds: the node stays.
    3. Bounds that depend on the length: positions up to the width of the batch, times the step, plus the start, which
       may differ between rows.
    4. Bounds that depend on the data: refused.
    """
    start, limit, step = (bound.table for bound in bounds)
    count = np.maximum(np.ceil((limit.astype(np.float64) - start) / np.where(step == 0, 1, step)), 0).astype(np.int64)
    size = Size(count.reshape(2, -1))
    dtype = bounds[0].dtype
    mender.refuse_if(
        size.is_rows and not ((start == 0).all() and (step == 1).all()),
        "counts the rows of the batch, but not from 0 by 1",
    )
    # Cases 1 and 2
    if size.is_rows or (size.fixed is not None and (start == start.flat[0]).all() and (step == step.flat[0]).all()):
        (name,) = mender.copy_node([bound.name for bound in bounds])
        groups = groups_of_one([mender.rows if size.is_rows else size])
        return DataTensor(name, dtype, groups, is_row_index=size.is_rows)
    # Case 3
    name = mender.writer.positions(size)
    name = name if dtype == INT64 else mender.writer.cast(name, dtype)
    value = DataTensor(name, dtype, groups_of_one([size]))
    for kind, bound, neutral in (("Mul", bounds[2], 1), ("Add", bounds[0], 0)):
        if not (bound.table == neutral).all():
            value = mender.broadcast_node(kind, value, bound)
    return value


def _is_over_steps(mender: Mender, value: DataTensor) -> bool:
    """Whether a ReverseSequence is over the steps of each row."""
    rows, time = mender.attribute("batch_axis", 1), mender.attribute("time_axis", 0)
    return value.has_original_axes and value.groups[rows][0].is_rows and value.groups[time][0].is_time


@rule("ReverseSequence", requires={"reverses another axis than the steps of each row": _is_over_steps})
def _reverse_sequence(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the reversal of the steps.

    1. Its lengths come from an input with lengths: the node stays.
    2. Else it reverses the whole width: it gets each row's own length.
    """
    lengths, (size,) = mender.inputs()[1], value.groups[mender.attribute("time_axis", 0)]
    stays = isinstance(lengths, DataTensor) and "lengths" in lengths.sources
    own_sizes = lengths.name if stays else mender.writer.per_row(size.by_length)
    cause = "" if stays else "it reverses the padding together with the steps"
    return replace(mender.keep_node(value, [own_sizes]), zero_padded=value.zero_padded).because(cause)
