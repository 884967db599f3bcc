"""Operators that pick by indices: what counts from the end counts from each row's own end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.mender import INT64, Mender, rule
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    DataTensor,
    Group,
    KnownTensor,
    Size,
    Table,
    Value,
    axis_text,
    has_size_one,
)

_FAR = np.iinfo(np.int64).max
_ENDS_ELSEWHERE = "it counts from the end of the padded width, not of the row"


@rule("Slice")
def _slice(mender: Mender) -> None:
    """A part of each axis, as NumPy's `start:end:step`; each axis in turn, by `_sliced`."""
    value = mender.data_input(0)
    starts, ends = (
        mender.sizes_input(index, f"its {name} are").elements() for index, name in ((1, "starts"), (2, "ends"))
    )
    axes, steps = mender.axes_of_node(value.rank, 3), mender.constant_input(4)
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, strides, strict=True):
        value = _sliced(mender, value, axis, start, end, step)
    mender.set_output(value)


def _sliced(mender: Mender, value: DataTensor, axis: int, start: Table, end: Table, step: int) -> DataTensor:
    """The tensor cut along an axis of the original, as NumPy's `start:end:step` cuts it.

    1. Nothing is cut off at any length: the value stays.
    2. The start is the same at every length (`x[:, 2:]`, `x[:, :-1]`, `x[:, ::2]`): a Slice up to the width of the
       batch. Behind a row's own end comes its padding.
    3. The start depends on the length (`x[:, -3:]`, a flip): each row picks its own positions.
    4. A part of the rows: refused.
    """
    size = mender.axis_size(value.groups[axis])
    own, start, end = size.table, start.astype(np.int64), end.astype(np.int64)
    low, high = (0, own) if step > 0 else (-1, own - 1)
    begin_at = np.clip(np.where(start < 0, start + own, start), low, high)
    stop_at = np.clip(np.where(end < 0, np.maximum(end, -own - 1) + own, end), low, high)
    out, begins = Size(np.maximum(-(-(stop_at - begin_at) // step), 0)), begin_at[0]
    if step == 1 and not begins.any() and out.equals(size):
        return value
    dim, size = mender.only_dim(value, axis)
    mender.refuse_if(size.is_rows or out.depends_on_rows, CROSSES_ROWS)
    mender.refuse_if(not out.by_length.any(), "is empty at every length")
    if step > 0 and (begins == begins[-1])[out.by_length > 0].all():
        begin = int(begins[-1])
        to_the_end = bool((begins + out.by_length * step >= size.by_length).all())
        if out.fixed is not None:
            stop = mender.writer.constant([begin + (out.fixed - 1) * step + 1])
        elif to_the_end:
            stop = mender.writer.constant([_FAR])
        else:
            stop = mender.emit("Mul", [mender.writer.size_at_width(out), mender.writer.constant([step])])
            stop = mender.emit("Add", [stop, mender.writer.constant([begin])]) if begin else stop
        numbers = [mender.writer.constant([each]) for each in (begin, dim, step)]
        name = mender.emit("Slice", [value.name, numbers[0], stop, numbers[1], numbers[2]])
        # Behind an end that is cut off there are steps, not zeros.
        zero_padded = value.zero_padded and (to_the_end or not size.is_time)
        return value.with_name(name, groups=value.groups_with(axis, out), zero_padded=zero_padded)
    if size.is_time:
        mender.causes.append(_ENDS_ELSEWHERE)
    return mender.take_per_row(value, axis, mender.strided_positions(begins, step, out), out)


@rule("Gather")
def _gather(mender: Mender) -> None:
    """Elements by their index along an axis.

    1. The index is a constant or computed from sizes: `_gathered_by_numbers`.
    2. The index is data (token ids, a table of positions): `_gathered_by_data`.
    """
    (value, axis), index = mender.input_and_axis(0), mender.required_input(1)
    if isinstance(index, KnownTensor):
        mender.set_output(_gathered_by_numbers(mender, value, axis, index))
    else:
        mender.set_output(_gathered_by_data(mender, value, axis, index))


def _gathered_by_numbers(mender: Mender, value: DataTensor, axis: int, index: KnownTensor) -> DataTensor:
    """Elements by an index that constants and sizes give.

    1. It is the same at every length: the node stays. Lengths that do not have such a step are left out.
    2. It depends on the length (`x[:, -1]`): each row picks its own step, counted from its own end.
    3. It picks rows: refused.
    """
    mender.refuse_rows(value.groups[axis])
    dim, size = mender.only_dim(value, axis)
    shape: tuple[Group, ...] = tuple((mender.fixed_size(each),) for each in index.shape)
    groups = (*value.groups[:axis], *shape, *value.groups[axis + 1 :])
    indices = index.table[0]
    own = size.by_length.reshape(-1, *[1] * (indices.ndim - 1))
    counted = np.where(indices < 0, indices + own, indices)
    inside: NDArray[np.bool_] = np.asarray(((counted >= 0) & (counted < own)).reshape(len(counted), -1).all(axis=1))
    mender.refuse_if(not inside.any(), "picks steps that no sequence has")
    mender.require_lengths(inside)
    if (counted == counted[0]).all():
        name = mender.emit("Gather", [value.name, mender.writer.constant(counted[0].astype(np.int64))], axis=dim)
        return value.with_name(name, groups=groups)
    if size.is_time:
        mender.causes.append(_ENDS_ELSEWHERE)
    mender.refuse_if(len(index.shape) > 1, "picks by a table of indices that depend on the length")
    flat = np.maximum(counted.reshape(len(counted), -1), 0).astype(np.int64)
    picked = mender.take_per_row(value, axis, mender.writer.per_row(flat), mender.fixed_size(flat.shape[1]))
    if index.shape:
        return picked
    return mender.squeezed(picked, [axis])


def _gathered_by_data(mender: Mender, value: DataTensor, axis: int, index: DataTensor) -> DataTensor:
    """Elements by an index that is data.

    1. A table that is the same for all rows: the node stays. A computed index gets 0 at the padding, where it may lie
       outside of the table.
    2. An index that differs by length only, of a value that has rows: each row picks its own steps, and a negative
       number counts from its own end.
    3. An index of all rows, of a value that has rows: refused, since each row would pick from all of them.
    """
    dim, size = mender.mixed_dim(value, axis)
    # Case 3
    mender.refuse_if(
        value.rows_dim is not None and any(each.is_rows for each in index.dim_sizes),
        "picks steps of all rows in each row: gather along the steps",
    )
    mender.refuse_if(index.has_merged_axes, "picks by an index with merged axes")
    groups = (*value.groups[:axis], *index.groups, *value.groups[axis + 1 :])
    if index.has_added_rows and value.rows_dim is not None:  # case 2
        mender.refuse_if(index.rank != 1, "picks by a table of indices that depend on the row")
        return mender.take_per_row(value, axis, _from_the_end(mender, index, size).name, index.groups[0][0])
    # Case 1
    times = index.time_dims()
    if index.rows_dim is not None and index.name not in mender.unchanged_steps:
        index = mender.masked(index, times, 0)  # at the padding, a computed number may be outside of the table
    has_added_rows = value.has_added_rows or index.has_added_rows
    if index.has_added_rows and not value.has_added_rows and axis != 0:  # the added rows belong in front of all axes
        front = [dim, *(at for at in range(len(value.dim_sizes)) if at != dim)]
        name = mender.emit("Gather", [mender.writer.transposed(value.name, front), index.name], axis=0)
        count = len(index.dim_sizes) + 1
        order = [0, *range(count, count + dim), *range(1, count), *range(count + dim, count + len(value.dim_sizes) - 1)]
        name = mender.writer.transposed(name, order)
    else:
        name = mender.emit("Gather", [value.name, index.name], axis=dim)
    return value.with_name(name, groups=groups, has_added_rows=has_added_rows, zero_padded=False)


def _from_the_end(mender: Mender, index: DataTensor, size: Size) -> DataTensor:
    """An index in which negative numbers, which count from the end, are counted from each row's own end."""
    (aligned, end), groups, has_added_rows = mender.align_axes(
        [index, KnownTensor(mender.writer.size_at_width(size), size.table)]
    )
    is_negative = mender.emit("Less", [aligned.name, mender.writer.scalar(0, index.dtype)])
    if index.dtype != INT64:
        end = end.with_name(mender.emit("Cast", [end.name], to=index.dtype), dtype=index.dtype)
    from_start = mender.emit("Add", [aligned.name, end.name])
    return DataTensor(
        mender.emit("Where", [is_negative, from_start, aligned.name]), index.dtype, groups, has_added_rows
    )


@rule("GatherND")
def _gather_nd(mender: Mender) -> None:
    """Elements by several indices at once.

    1. One index of each row, behind the rows (`batch_dims` of 1): each row picks from its own steps.
    2. `x[rows, index]`, where `rows` are the numbers of the rows in order: the same.
    3. One index along the first axis: as Gather.
    4. Several indices: refused.
    """
    value, index = mender.data_input(0), mender.required_input(1)
    if isinstance(index, DataTensor) and index.index_columns:
        mender.set_output(_of_each_row(mender, value, index.index_columns))
        return
    count = index.shape[-1] if isinstance(index, KnownTensor) else index.groups[-1][0].fixed
    if mender.attribute("batch_dims", 0) == 1 and count == 1 and isinstance(index, DataTensor):
        mender.set_output(_of_own_row(mender, value, index))
        return
    mender.refuse_if(
        mender.attribute("batch_dims", 0) or count != 1,
        f"picks by {count} indexes at once, as adaptive pools and x[i, j] do: pick along one axis",
    )
    if isinstance(index, KnownTensor):
        name = mender.writer.squeezed(index.name, [len(index.shape) - 1])
        mender.set_output(_gathered_by_numbers(mender, value, 0, KnownTensor(name, index.table[..., 0])))
        return
    mender.set_output(_gathered_by_data(mender, value, 0, mender.squeezed(index, [-1])))


def _of_each_row(mender: Mender, value: DataTensor, columns: Sequence[Value]) -> DataTensor:
    """`value[rows, indices]`, where `rows` are the numbers of the rows, in order."""
    first, *rest = columns
    if len(rest) != 1 or not isinstance(first, DataTensor) or not first.is_row_index:
        mender.refuse("picks by the numbers of the rows in another order than x[rows, indices]")
    mender.refuse_if(
        value.has_merged_axes or value.has_added_rows or value.rank < 2 or not value.groups[0][0].is_rows,
        "picks by the numbers of the rows from a value whose first axis is not the rows",
    )
    (_, indices), groups, _ = mender.align_axes([first.with_name(first.name, is_row_index=False), rest[0]])
    mender.refuse_if(
        not 2 <= len(groups) <= 3 or any(len(group) != 1 for group in groups) or not groups[0][0].is_rows,
        "picks steps of each row by an index of more than two axes",
    )
    whole = mender.emit_with_shape("Expand", indices.name, [size for (size,) in groups])
    return _of_own_row(mender, value, DataTensor(whole, indices.dtype, groups))


def _of_own_row(mender: Mender, value: DataTensor, index: DataTensor) -> DataTensor:
    """`value[row, index[row]]` for an index `[rows, ..., 1]`: a GatherND with `batch_dims` of 1."""
    merged = value.has_merged_axes or value.has_added_rows or index.has_merged_axes or index.has_added_rows
    mender.refuse_if(
        merged or not value.groups[0][0].is_rows or not index.groups[0][0].is_rows,
        "picks from one row by the index of another",
    )
    _, size = mender.only_dim(value, 1)
    groups = index.groups[:-1]
    positions = DataTensor(mender.writer.squeezed(index.name, [len(groups)]), index.dtype, groups)
    positions = _from_the_end(mender, positions, size) if size.is_time else positions
    positions = mender.masked(positions, positions.time_dims(), 0)
    name = mender.emit("GatherND", [value.name, mender.writer.unsqueezed(positions.name, [len(groups)])], batch_dims=1)
    return value.with_name(name, groups=(*groups, *value.groups[2:]), zero_padded=False)


@rule("GatherElements")
def _gather_elements(mender: Mender) -> None:
    """Elements by an index of the same shape but for one axis.

    A negative index counts from each row's own end, and is 0 at the padding. A table for all rows is repeated for
    each. An index that picks from other rows is refused.
    """
    (value, axis), index = mender.input_and_axis(0), mender.data_input(1)
    dim, size = mender.mixed_dim(value, axis)
    mender.refuse_if(
        value.has_added_rows != index.has_added_rows or value.has_merged_axes or index.has_merged_axes,
        "picks from one row by the index of another",
    )
    for other_axis, (group, of_index) in enumerate(zip(value.groups, index.groups, strict=True)):
        mender.refuse_if(
            other_axis != axis and not mender.matches(group, of_index) and not has_size_one(of_index),
            f"picks from {axis_text(group)} by an index of {axis_text(of_index)}",
        )
        mender.refuse_if(group[0].is_rows and other_axis != axis and not of_index[0].is_rows, CROSSES_ROWS)
    indices = _from_the_end(mender, index, size) if size.is_time else index
    indices = mender.masked(indices, indices.time_dims(), 0)
    if (
        indices.has_added_rows and not value.has_added_rows
    ):  # a table for all rows, of which each row takes its own part
        shape = mender.emit("Concat", [mender.writer.rows, mender.writer.constant([1] * len(value.dim_sizes))], axis=0)
        name = mender.emit("Expand", [mender.writer.unsqueezed(value.name, [0]), shape])
        value, dim = value.with_name(name, has_added_rows=True), dim + 1
    name = mender.emit("GatherElements", [value.name, indices.name], axis=dim)
    mender.set_output(value.with_name(name, groups=index.groups, zero_padded=False))


@rule("Range")
def _range(mender: Mender) -> None:
    """KnownTensor from a start to a limit.

    1. The numbers of the rows, from 0 by 1: kept as such, to be used as an index only.
    2. Constant bounds: the node stays.
    3. Bounds that depend on the length: positions up to the width of the batch, times the step, plus the start, which
       may differ between rows.
    4. Bounds that depend on the data: refused.
    """
    numbers = [each for each in map(mender.required_input, range(3)) if isinstance(each, KnownTensor)]
    mender.refuse_if(len(numbers) < 3, "its end is computed from the data")
    start, limit, step = (each.table for each in numbers)
    count = np.maximum(np.ceil((limit.astype(np.float64) - start) / np.where(step == 0, 1, step)), 0).astype(np.int64)
    size = Size(count.reshape(2, -1))
    dtype = numbers[0].dtype
    mender.refuse_if(
        size.is_rows and not ((start == 0).all() and (step == 1).all()),
        "counts the rows of the batch, but not from 0 by 1",
    )
    if size.is_rows or (size.fixed is not None and (start == start.flat[0]).all() and (step == step.flat[0]).all()):
        (name,) = mender.copy_node([each.name for each in numbers])
        mender.set_output(
            DataTensor(name, dtype, ((mender.rows if size.is_rows else size,),), is_row_index=size.is_rows)
        )
        return
    name = mender.writer.positions(size)
    value = DataTensor(name if dtype == INT64 else mender.emit("Cast", [name], to=dtype), dtype, ((size,),))
    for kind, number, neutral in (("Mul", numbers[2], 1), ("Add", numbers[0], 0)):
        if not (number.table == neutral).all():
            value = mender.broadcast_node(kind, value, number)
    mender.set_output(value)


@rule("ReverseSequence")
def _reverse_sequence(mender: Mender) -> None:
    """Steps in reverse order.

    1. Its lengths come from an input with lengths: the node stays.
    2. Else it reverses the whole width: it gets each row's own length.
    """
    value = mender.data_input(0)
    rows, time = mender.attribute("batch_axis", 1), mender.attribute("time_axis", 0)
    mender.refuse_if(
        value.has_merged_axes
        or value.has_added_rows
        or not value.groups[rows][0].is_rows
        or not value.groups[time][0].is_time,
        "reverses another axis than the steps of each row",
    )
    if mender.node.input[1] in mender.depends_on_lengths:
        ends = mender.data_input(1).name
    else:
        mender.causes.append("it reverses the padding together with the steps")
        ends = mender.writer.per_row(value.groups[time][0].by_length)
    mender.set_output(value.with_name(mender.copy_node([value.name, ends])[0]))
