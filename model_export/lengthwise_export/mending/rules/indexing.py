"""Operators that pick places: what counts from the end counts from each row's own end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.mender import (
    CROSSES_ROWS,
    INT64,
    Group,
    Mender,
    Rule,
    is_one,
    shown,
)
from lengthwise_export.mending.rules.convolution import surrounded
from lengthwise_export.mending.sizes import Size, Table, constant_of
from lengthwise_export.mending.values import Numbers, Ragged, Value

_FAR = np.iinfo(np.int64).max
_ENDS_ELSEWHERE = "it counts from the end of the padded width, not of the row"


def slice_(mender: Mender) -> None:
    """Slice."""
    value = mender.ragged(0)
    starts, ends = _bounds(mender, "starts", 1), _bounds(mender, "ends", 2)
    given = mender.attribute("axes")
    if given is None:
        array = mender.constant(3)
        given = [*range(len(starts))] if array is None else array.tolist()
    steps = mender.constant(4)
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(given, starts, ends, strides, strict=True):
        value = sliced(mender, value, axis % value.rank, start, end, step)
    mender.set(value)


def _bounds(mender: Mender, name: str, place: int) -> list[Table]:
    """Each bound as a table `[2, lengths]`."""
    given = mender.attribute(name)
    if given is not None:
        return [np.broadcast_to(np.int64(each), (2, mender.count)) for each in given]
    value = mender.value(place)
    if not isinstance(value, Numbers):
        mender.refuse(f"its {name} are computed from the data")
    return [value.table[..., at] for at in range(value.shape[0])]


def sliced(mender: Mender, value: Ragged, axis: int, start: Table, end: Table, step: int) -> Ragged:
    """The tensor cut along an axis of the original, as NumPy's `start:end:step` cuts it."""
    size = mender.size_of(value.groups[axis])
    first, count = _resolved(size.table, start.astype(np.int64), end.astype(np.int64), step)
    out = Size(count)
    if step == 1 and (first[0] == 0).all() and out.same(size):
        return value
    place, size = mender.single(value, axis)
    if size.is_rows or out.counts_rows:
        mender.refuse(CROSSES_ROWS)
    if not out.alone.any():
        mender.refuse("is empty at every length")
    groups = tuple((out,) if at == axis else group for at, group in enumerate(value.groups))
    begins = first[0]
    if step > 0 and (begins == begins[-1])[out.alone > 0].all():
        begin = int(begins[-1])
        to_the_end = bool((first[0] + count[0] * step >= size.alone).all())
        if out.fixed is not None:
            stop = mender.writer.constant([begin + (out.fixed - 1) * step + 1])
        elif to_the_end:
            stop = mender.writer.constant([_FAR])
        else:
            stop = mender.emit("Mul", [mender.writer.at_width(out), mender.writer.constant([step])])
            stop = mender.emit("Add", [stop, mender.writer.constant([begin])]) if begin else stop
        numbers = [mender.writer.constant([each]) for each in (begin, place, step)]
        name = mender.emit("Slice", [value.name, numbers[0], stop, numbers[1], numbers[2]])
        # Behind an end that is cut off there are steps, not zeros.
        return value.called(name, groups=groups, zeroed=value.zeroed and (to_the_end or not size.is_time))
    if size.is_time:
        mender.causes.append(_ENDS_ELSEWHERE)
    index = mender.clipped(mender.along(first[0], step, out), size)
    return mender.take(value, axis, index, out)


def _resolved(size: Table, start: Table, end: Table, step: int) -> tuple[Table, Table]:
    """The first place and the number of places of a slice, for each size of the axis."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    begin = np.clip(np.where(start < 0, start + size, start), low, high)
    stop = np.clip(np.where(end < 0, np.where(end < -size - 1, -size - 1, end) + size, end), low, high)
    count = -(-(stop - begin) // step) if step > 0 else -(-(begin - stop) // -step)
    return begin, np.maximum(count, 0)


def gather(mender: Mender) -> None:
    """Gather."""
    data, index = mender.value(0), mender.value(1)
    assert data is not None
    assert index is not None
    value = mender.as_ragged(data)
    axis = mender.attribute("axis", 0) % value.rank
    if isinstance(index, Numbers):
        mender.set(_gathered_by_numbers(mender, value, axis, index))
    else:
        mender.set(_gathered_by_data(mender, value, axis, index))


def _gathered_by_numbers(mender: Mender, value: Ragged, axis: int, index: Numbers) -> Ragged:
    group = value.groups[axis]
    if any(size.is_rows for size in group):
        mender.refuse(CROSSES_ROWS)
    shape: tuple[Group, ...] = tuple((mender.fixed(each),) for each in index.shape)
    groups = (*value.groups[:axis], *shape, *value.groups[axis + 1 :])
    place, size = mender.single(value, axis)
    places = index.table[0]
    behind = tuple(range(1, places.ndim))
    own = size.alone.reshape(-1, *[1] * (places.ndim - 1))
    counted = np.where(places < 0, places + own, places)
    inside: NDArray[np.bool_] = np.asarray(((counted >= 0) & (counted < own)).all(axis=behind))
    if not inside.any():
        mender.refuse("picks places that no sequence has")
    mender.require(inside)
    if (counted == counted[0]).all():
        name = mender.emit("Gather", [value.name, mender.writer.constant(counted[0].astype(np.int64))], axis=place)
        return value.called(name, groups=groups)
    if size.is_time:
        mender.causes.append(_ENDS_ELSEWHERE)
    if len(index.shape) > 1:
        mender.refuse("picks a table of places that depend on the length")
    flat = np.maximum(counted.reshape(len(counted), -1), 0).astype(np.int64)
    count = mender.fixed(flat.shape[1])
    picked = mender.take(value, axis, mender.clipped(mender.writer.per_row(flat), size), count)
    if index.shape:
        return picked
    return picked.called(mender.squeezed(picked.name, [picked.starts()[axis]]), groups=groups)


def _gathered_by_data(mender: Mender, value: Ragged, axis: int, index: Ragged) -> Ragged:
    place, size = mender.single(value, axis)
    if size.is_rows or (value.rows_at is not None and any(each.is_rows for each in index.axes)):
        mender.refuse(
            f"{CROSSES_ROWS}" if size.is_rows else "picks places of all rows in each row: gather along the steps"
        )
    if index.is_merged:
        mender.refuse("picks by an index with merged axes")
    groups = (*value.groups[:axis], *index.groups, *value.groups[axis + 1 :])
    if index.row_added and value.rows_at is not None:
        if index.rank != 1:
            mender.refuse("picks by a table of places that depend on the row")
        places = _from_the_end(mender, index, size)
        return mender.take(value, axis, mender.clipped(places.name, size), index.groups[0][0])
    places = _inside(mender, index)
    if places.row_added and not value.row_added and axis != 0:
        front = [place, *(at for at in range(len(value.axes)) if at != place)]
        picked = mender.emit("Gather", [mender.transposed(value.name, front), places.name], axis=0)
        count = len(places.axes) + 1
        order = [0, *range(count, count + place), *range(1, count), *range(count + place, count + len(value.axes) - 1)]
        return value.called(mender.transposed(picked, order), groups=groups, row_added=True, zeroed=False)
    name = mender.emit("Gather", [value.name, places.name], axis=place)
    return value.called(name, groups=groups, row_added=value.row_added or places.row_added, zeroed=False)


def _inside(mender: Mender, index: Ragged) -> Ragged:
    """An index with 0 at the padding, where a computed number may be outside of the table."""
    times = [place for place, _ in index.times()]
    if not times or index.rows_at is None or index.name in mender.raw:
        return index
    return mender.masked(index, times, 0)


def _from_the_end(mender: Mender, index: Ragged, size: Size) -> Ragged:
    """An index whose negative places count from each row's own end."""
    table = size.table
    ends = Numbers(mender.writer.at_width(size), table)
    (one, end), groups, row_added = mender.align([index, ends])
    zero = mender.writer.scalar_of(0, index.dtype)
    negative = mender.emit("Less", [one.name, zero])
    if index.dtype != INT64:
        end = end.called(mender.cast(end.name, index.dtype), dtype=index.dtype)
    moved = mender.emit("Add", [one.name, end.name])
    return Ragged(mender.emit("Where", [negative, moved, one.name]), index.dtype, groups, row_added)


def gather_nd(mender: Mender) -> None:
    """GatherND by one index, which is Gather along its first axis."""
    data, index = mender.value(0), mender.value(1)
    assert data is not None
    assert index is not None
    if isinstance(index, Ragged) and index.columns:
        mender.set(_of_each_row(mender, mender.as_ragged(data), index.columns))
        return
    count = index.shape[-1] if isinstance(index, Numbers) else index.groups[-1][0].fixed
    if mender.attribute("batch_dims", 0) == 1 and count == 1 and isinstance(index, Ragged):
        mender.set(_of_own_row(mender, mender.as_ragged(data), index))
        return
    if mender.attribute("batch_dims", 0) or count != 1:
        mender.refuse(
            f"picks places by {count} indexes at once, as adaptive pools, interpolation and x[i, j] do: pool to one "
            "step, or pick along one axis"
        )
    value = mender.as_ragged(data)
    if isinstance(index, Numbers):
        name = mender.squeezed(index.name, [len(index.shape) - 1])
        mender.set(_gathered_by_numbers(mender, value, 0, Numbers(name, index.table[..., 0])))
        return
    name = mender.squeezed(index.name, [len(index.axes) + index.row_added - 1])
    mender.set(_gathered_by_data(mender, value, 0, index.called(name, groups=index.groups[:-1])))


def _of_each_row(mender: Mender, value: Ragged, columns: Sequence[Value]) -> Ragged:
    """`value[rows, places]`, where `rows` counts the rows."""
    first, *rest = columns
    if len(rest) != 1 or not isinstance(first, Ragged) or not first.counts_rows:
        mender.refuse("picks places by the numbers of the rows in another order than x[rows, places]")
    if value.is_merged or value.row_added or value.rank < 2 or not value.groups[0][0].is_rows:
        mender.refuse("picks by the numbers of the rows from a value whose first axis is not the rows")
    (_, places), groups, _ = mender.align([first.called(first.name, counts_rows=False), rest[0]])
    if not 2 <= len(groups) <= 3 or any(len(group) != 1 for group in groups) or not groups[0][0].is_rows:
        mender.refuse("picks places of each row by an index of more than two axes")
    shape = mender.emit("Concat", [mender.at_width(group) for group in groups], axis=0)
    whole = mender.emit("Expand", [places.name, shape])
    return _of_own_row(mender, value, Ragged(whole, places.dtype, groups))


def _of_own_row(mender: Mender, value: Ragged, index: Ragged) -> Ragged:
    """Picks from each row by its own index `[rows, ..., 1]`, along the axis behind the rows."""
    merged = value.is_merged or value.row_added or index.is_merged or index.row_added
    if merged or not value.groups[0][0].is_rows or not index.groups[0][0].is_rows:
        mender.refuse("picks from one row by the index of another")
    _, size = mender.single(value, 1)
    groups = index.groups[:-1]
    picked = Ragged(mender.squeezed(index.name, [len(groups)]), index.dtype, groups)
    picked = _from_the_end(mender, picked, size) if size.is_time else picked
    picked = mender.masked(picked, [place for place, _ in picked.times()], 0)
    name = mender.emit("GatherND", [value.name, mender.unsqueezed(picked.name, [len(groups)])], batch_dims=1)
    return value.called(name, groups=(*groups, *value.groups[2:]), zeroed=False)


def gather_elements(mender: Mender) -> None:
    """GatherElements."""
    value, index = mender.ragged(0), mender.ragged(1)
    axis = mender.attribute("axis", 0) % value.rank
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    if value.row_added != index.row_added or value.is_merged or index.is_merged:
        mender.refuse("picks from one row by the index of another")
    for at, (one, other) in enumerate(zip(value.groups, index.groups, strict=True)):
        if at != axis and not mender.matches(one, other) and not is_one(other):
            mender.refuse(f"picks from {shown(one)} by an index of {shown(other)}")
        if one[0].is_rows and at != axis and not other[0].is_rows:
            mender.refuse(CROSSES_ROWS)
    places = _from_the_end(mender, index, size) if size.is_time else index
    places = mender.masked(places, [at for at, _ in places.times()], 0)
    name = mender.emit("GatherElements", [value.name, places.name], axis=place)
    mender.set(value.called(name, groups=index.groups, zeroed=False))


def concat(mender: Mender) -> None:
    """Concat: what follows the steps of a row begins where that row ends."""
    values = [mender.values[name] for name in mender.node.input if name]
    if any(isinstance(value, Ragged) and value.counts_rows for value in values):
        mender.set(Ragged("", INT64, (), columns=tuple(values)))  # the index of several axes: for GatherND
        return
    rank = max(len(value.shape) if isinstance(value, Numbers) else value.rank for value in values)
    axis = mender.attribute("axis") % rank
    operands, groups, row_added = mender.align(values, keep=axis)
    parts = [operand.groups[axis + operand.rank - rank] for operand in operands]
    if any(len(part) != 1 for part in parts):
        mender.refuse("joins merged axes")
    sizes = [part[0] for part in parts]
    if any(size.is_rows for size in sizes):
        mender.refuse(CROSSES_ROWS)
    operands = [_repeated(mender, operand, groups, row_added, axis) for operand in operands]
    out = Size(np.sum([size.table for size in sizes], axis=0))
    place = int(row_added) + sum(len(group) for group in groups[:axis])
    name = mender.emit("Concat", [operand.name for operand in operands], axis=place)
    zeroed = all(operand.zeroed for operand in operands) and not any(size.is_time for size in sizes[:-1])
    whole = (*groups[:axis], (out,), *groups[axis + 1 :])
    joined = Ragged(name, operands[0].dtype, whole, row_added, zeroed and not out.is_time)
    if not any(size.is_time for size in sizes[:-1]):
        mender.set(joined)
        return
    mender.causes.append("what follows the steps comes behind the padding")
    index = mender.emit("Unsqueeze", [mender.writer.positions(out), mender.writer.constant([0])])
    base = index
    end = np.zeros(mender.count, np.int64)
    for size in sizes[:-1]:
        end = end + size.alone
        if size.is_time:
            own = mender.unsqueezed(mender.writer.per_row(end), [1])
            padding = mender.emit("Sub", [mender.writer.at_width(size), mender.writer.per_row(size.alone)])
            behind = mender.emit("GreaterOrEqual", [base, own])
            moved = mender.emit("Mul", [mender.cast(behind, INT64), mender.unsqueezed(padding, [1])])
            index = mender.emit("Add", [index, moved])
    mender.set(mender.take(joined, axis, mender.clipped(index, out), out))


def _repeated(mender: Mender, value: Ragged, groups: Sequence[Group], row_added: bool, axis: int) -> Ragged:
    """An operand of a concatenation with all rows, if it stands for each of them."""
    rank = int(row_added) + sum(1 if at == axis else len(group) for at, group in enumerate(groups))
    wanted: list[Size | None] = [mender.rows] if row_added else []
    for at, group in enumerate(groups):
        wanted += [None] if at == axis else [*group]
    moved_rows = not row_added and value.row_added
    has = value.rows_at is not None
    needs_rows = any(size is not None and size.is_rows for size in wanted)
    flat = [size for group in value.groups for size in group]
    lacks_others = len(flat) + value.row_added - moved_rows < rank
    if has == needs_rows and not lacks_others and not moved_rows:
        return value
    parts = [mender.writer.constant([1]) if size is None else mender.writer.at_width(size) for size in wanted]
    return value.called(mender.emit("Expand", [value.name, mender.emit("Concat", parts, axis=0)]))


def split(mender: Mender) -> None:
    """Split."""
    value = mender.ragged(0)
    axis = mender.attribute("axis", 0) % value.rank
    place, size = mender.single(value, axis)
    names = [name for name in mender.node.output]
    given = mender.attribute("split")
    if given is None:
        array = mender.constant(1)
        given = None if array is None else array.tolist()
    if size.fixed is None:
        mender.refuse(CROSSES_ROWS if size.is_rows else "cuts the steps into pieces whose sizes depend on the width")
    if given is None:
        each = -(-size.fixed // len(names))
        given = [min(each, size.fixed - each * at) for at in range(len(names))]
    copied = mender.copy([value.name, *list(mender.node.input)[1:]], axis=place)
    for at, (name, part) in enumerate(zip(copied, given, strict=True)):
        if name:
            groups = tuple((mender.fixed(part),) if each == axis else group for each, group in enumerate(value.groups))
            mender.set(value.called(name, groups=groups), at)


def pad(mender: Mender) -> None:
    """Pad: what comes behind the steps comes behind each row's own last step."""
    value = mender.ragged(0)
    mode = mender.attribute("mode", "constant")
    amounts, axes = mender.value(1), mender.constant(3)
    if amounts is None:
        mender.refuse("its amounts are an attribute: convert the graph to opset 11 or later")
    if not isinstance(amounts, Numbers):
        mender.refuse("its amounts are computed from the data")
    fill_value = mender.value(2)
    fill = 0.0
    if fill_value is not None:
        constant = mender.constant(2)
        assert constant is not None
        fill = constant.reshape(-1)[0].item() if constant.size else 0.0
    chosen = [*range(value.rank)] if axes is None else [int(axis) % value.rank for axis in axes]
    count = len(chosen)
    for at, axis in enumerate(chosen):
        front, behind = amounts.table[..., at], amounts.table[..., at + count]
        before, after = (constant_of(np.ascontiguousarray(each)) for each in (front, behind))
        if before is None or after is None:
            value = _padded_by_length(mender, value, axis, (front, behind), mode, fill)
        elif before or after:
            value = _padded(mender, value, axis, int(before), int(after), mode, fill)
    mender.set(value)


def _padded_by_length(
    mender: Mender, value: Ragged, axis: int, amounts: tuple[Table, Table], mode: str, fill: float
) -> Ragged:
    """The tensor with a number around each row's own steps, as often as its length says."""
    place, size = mender.single(value, axis)
    if (
        mode != "constant"
        or not size.is_time
        or any((each[0] != each[1]).any() or (each < 0).any() for each in amounts)
    ):
        mender.refuse(f"pads in the mode {mode} by an amount that depends on the width, or takes steps away")
    mender.causes.append("what it adds depends on the padded width, and comes behind the padding")
    front, behind = (each[0] for each in amounts)
    return surrounded(mender, mender.masked(value, [place], fill), axis, front, behind, fill)


def _padded(mender: Mender, value: Ragged, axis: int, before: int, after: int, mode: str, fill: float) -> Ragged:
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    out = Size(np.maximum(size.table + before + after, 0))
    groups = tuple((out,) if at == axis else group for at, group in enumerate(value.groups))
    if mode == "constant" or size.fixed is not None:
        if size.is_time and after > 0:
            mender.causes.append("what it adds comes behind the padding")
            value = mender.masked(value, [place], fill)
            place = value.starts()[axis]
        rank = len(value.axes) + value.row_added
        amounts = [before if at == place else 0 for at in range(rank)]
        amounts += [after if at == place else 0 for at in range(rank)]
        inputs = [value.name, mender.writer.constant(amounts)]
        inputs += [mender.writer.scalar_of(fill, value.dtype)] if mode == "constant" else []
        name = mender.emit("Pad", inputs, mode=mode)
        zeroed = value.zeroed and mode == "constant" and fill == 0 and after >= 0
        return value.called(name, groups=groups, zeroed=zeroed)
    if min(before, after) < 0:
        mender.refuse(f"takes steps away in the mode {mode}")
    mender.causes.append(f"in the mode {mode} it repeats the end of the padded width, not of the row")
    ends = mender.unsqueezed(mender.writer.per_row(size.alone), [1])
    one = mender.writer.constant([1])
    last = mender.emit("Sub", [ends, one])
    index = mender.emit("Unsqueeze", [mender.writer.positions(out), mender.writer.constant([0])])
    index = mender.emit("Sub", [index, mender.writer.constant([before])]) if before else index
    if mode == "edge":
        index = mender.emit("Min", [mender.emit("Max", [index, mender.writer.constant([0])]), last])
    elif mode == "reflect":
        mender.needs(Size(size.table - max(before, after)))
        index = mender.emit("Abs", [index])
        beyond = mender.emit("Abs", [mender.emit("Sub", [last, index])])
        index = mender.emit("Sub", [last, beyond])
    elif mode == "wrap":
        index = mender.emit("Mod", [index, ends])
    else:
        mender.refuse(f"pads in the mode {mode}")
    return mender.take(value, axis, mender.clipped(index, size), out)


def range_(mender: Mender) -> None:
    """Range: positions along an axis."""
    numbers = [mender.value(place) for place in range(3)]
    if not all(isinstance(each, Numbers) for each in numbers):
        mender.refuse("its end is computed from the data")
    start, limit, step = (each.table for each in numbers if isinstance(each, Numbers))
    count = np.maximum(np.ceil((limit.astype(np.float64) - start) / np.where(step == 0, 1, step)), 0).astype(np.int64)
    size = Size(count.reshape(2, -1))
    dtype = int(numbers[0].dtype) if numbers[0] is not None else INT64
    if size.is_rows:
        if not (start == 0).all() or not (step == 1).all():
            mender.refuse("counts the rows of the batch, but not from 0 by 1")
        (name,) = mender.copy([each.name for each in numbers if each is not None])
        mender.set(Ragged(name, dtype, ((mender.rows,),), counts_rows=True))
        return
    if size.fixed is not None and (start == start.flat[0]).all() and (step == step.flat[0]).all():
        (name,) = mender.copy([each.name for each in numbers if each is not None])
        mender.set(Ragged(name, dtype, ((size,),)))
        return
    name = mender.writer.positions(size)
    name = name if dtype == INT64 else mender.cast(name, dtype)
    value = Ragged(name, dtype, ((size,),))
    for kind, number, neutral in (("Mul", numbers[2], 1), ("Add", numbers[0], 0)):
        assert isinstance(number, Numbers)
        if not (number.table == neutral).all():
            (one, other), groups, row_added = mender.align([value, number])
            value = Ragged(mender.emit(kind, [one.name, other.name]), dtype, groups, row_added)
    mender.set(value)


def reverse_sequence(mender: Mender) -> None:
    """ReverseSequence: over the whole width it reverses each row's own steps."""
    value = mender.ragged(0)
    rows, time = mender.attribute("batch_axis", 1), mender.attribute("time_axis", 0)
    if value.is_merged or value.row_added or not value.groups[rows][0].is_rows or not value.groups[time][0].is_time:
        mender.refuse("reverses another axis than the steps of each row")
    given = mender.node.input[1]
    if given in mender.from_lengths:
        ends = mender.ragged(1).name
    else:
        mender.causes.append("it reverses the padding together with the steps")
        ends = mender.writer.per_row(value.groups[time][0].alone)
    mender.set(value.called(mender.copy([value.name, ends])[0]))


RULES: dict[str, Rule] = {
    "Concat": concat,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "Range": range_,
    "ReverseSequence": reverse_sequence,
    "Slice": slice_,
    "Split": split,
}
