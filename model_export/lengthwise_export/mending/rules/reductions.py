"""Reductions and softmax over the steps: what lies beyond a row's length must not take part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from lengthwise_export.mending.mender import CROSSES_ROWS, INT64, Mender, Rule
from lengthwise_export.mending.sizes import Size
from lengthwise_export.mending.values import Numbers, Ragged

_NEUTRAL: Final[dict[str, float | Literal["lowest", "below_all", "above_all"]]] = {
    "ReduceSum": 0,
    "ReduceMean": 0,
    "ReduceL1": 0,
    "ReduceL2": 0,
    "ReduceLogSum": 0,
    "ReduceSumSquare": 0,
    "ReduceProd": 1,
    "ReduceMax": "below_all",
    "ReduceMin": "above_all",
    "ReduceLogSumExp": "lowest",
}
"""The number that changes nothing in a reduction."""

_OF_ONE: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions that give a lone number back."""

_OF_NONE: Final = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"})
"""Those that torch answers where there is no step, with what they fill padding with."""

_GLOBAL: Final = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "ReduceL2"}


def reduction(mender: Mender) -> None:
    """ReduceSum, ReduceMean, ReduceMax and their kind."""
    value = mender.ragged(0)
    axes = mender.axes(value.rank)
    if axes is None or not axes:
        if mender.attribute("noop_with_empty_axes", 0):
            mender.set(value)
            return
        axes = [*range(value.rank)]
    mender.set(reduced(mender, value, mender.node.op_type, axes, keep=bool(mender.attribute("keepdims", 1))))


def global_pool(mender: Mender) -> None:
    """GlobalAveragePool, GlobalMaxPool: over all axes behind the channels."""
    value = mender.ragged(0)
    kind = _GLOBAL[mender.node.op_type]
    if mender.attribute("p", 2) != 2:
        mender.refuse("pools with a norm other than 2")
    mender.set(reduced(mender, value, kind, range(2, value.rank), keep=True))


def reduced(mender: Mender, value: Ragged, kind: str, axes: Sequence[int], *, keep: bool) -> Ragged:
    """The tensor reduced over axes of the original, which stay with size 1 if `keep`."""
    sizes = [size for axis in axes for size in value.groups[axis]]
    if any(size.is_rows for size in sizes):
        name = mender.node.input[0]
        if name in mender.from_lengths and name not in mender.from_steps and kind in _OF_ONE and value.rank == 1:
            # Of a lone sequence's length, this is the length itself.
            mender.causes.append("it compares the lengths of all rows, and a lone sequence has only its own")
            own = value.called(value.name, groups=(), row_added=True)
            return kept(mender, own, axes, value.rank) if keep else own
        mender.refuse(CROSSES_ROWS)
    places = [place for axis in axes for place in value.indexes(axis)]
    times = dict(value.times())
    over_time = [place for place in places if place in times]
    if over_time:
        mender.causes.append("it reduces the padding together with the steps")
        fill = _NEUTRAL[kind]
        number = fill if not isinstance(fill, str) else getattr(mender, fill)(value.dtype)
        value = mender.masked(value, over_time, number)
        places = [place for axis in axes for place in value.indexes(axis)]
        for place in over_time:
            mender.needs(times[place], 0 if kind in _OF_NONE else 1)
    mean = kind == "ReduceMean" and bool(over_time)
    name = _emitted(mender, "ReduceSum" if mean else kind, value.name, places)
    groups = tuple(group for axis, group in enumerate(value.groups) if axis not in axes)
    result = Ragged(name, value.dtype, groups, value.row_added)
    if mean:
        result = divided(mender, result, mender.size_of(tuple(sizes)))
    return kept(mender, result, axes, value.rank) if keep else result


def divided(mender: Mender, value: Ragged, count: Size) -> Ragged:
    """The tensor divided by a size of each row."""
    table = count.table.astype(np.float32)
    number = Numbers(mender.emit("Cast", [mender.writer.at_width(count)], to=value.dtype), table)
    (first, second), groups, row_added = mender.align([value, number])
    return Ragged(mender.emit("Div", [first.name, second.name]), value.dtype, groups, row_added)


def kept(mender: Mender, value: Ragged, axes: Sequence[int], rank: int) -> Ragged:
    """A reduced tensor with axes of size 1 in the place of those it was reduced over."""
    left = iter(value.groups)
    groups = tuple((mender.one,) if axis in axes else next(left) for axis in range(rank))
    result = value.called(value.name, groups=groups)
    return value.called(mender.unsqueezed(value.name, [result.starts()[axis] for axis in sorted(axes)]), groups=groups)


def _emitted(mender: Mender, kind: str, name: str, places: Sequence[int]) -> str:
    """A reduction node; its axes are an attribute or an input, by the opset of the graph."""
    if kind == "ReduceSum" or mender.axes_are_inputs:
        return mender.emit(kind, [name, mender.writer.constant([*places])], keepdims=0)
    return mender.emit(kind, [name], axes=[*places], keepdims=0)


def softmax(mender: Mender) -> None:
    """Softmax and LogSoftmax."""
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    if size.is_time:
        mender.causes.append("the padding takes a share of its sum")
        value = mender.masked(value, [place], mender.lowest(value.dtype))
        place = value.starts()[axis]
    (name,) = mender.copy([value.name], axis=place)
    mender.set(value.called(name, zeroed=False))


def arg(mender: Mender) -> None:
    """ArgMax and ArgMin."""
    value = mender.ragged(0)
    axis = mender.attribute("axis", 0) % value.rank
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    if size.is_time:
        if mender.attribute("select_last_index", 0):
            mender.refuse("takes the last of several equal values")
        mender.causes.append("a step of the padding may be the one it finds")
        lowest = mender.node.op_type == "ArgMax"
        value = mender.masked(value, [place], (mender.below_all if lowest else mender.above_all)(value.dtype))
        place = value.starts()[axis]
    (name,) = mender.copy([value.name], axis=place, keepdims=0)
    groups = tuple(group for at, group in enumerate(value.groups) if at != axis)
    result = Ragged(name, INT64, groups, value.row_added)
    mender.set(kept(mender, result, [axis], value.rank) if mender.attribute("keepdims", 1) else result)


def top_k(mender: Mender) -> None:
    """TopK: padding must be the last choice. With as many as there are steps it sorts."""
    value, count = mender.ragged(0), mender.value(1)
    axis = mender.attribute("axis", -1) % value.rank
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    if not isinstance(count, Numbers):
        mender.refuse("its number of steps is computed from the data")
    chosen = Size(count.table.reshape(2, -1))
    if not mender.attribute("sorted", 1) and chosen.fixed is None:
        mender.refuse("gives the steps in no order")
    if size.is_time:
        mender.causes.append("a step of the padding may be among those it chooses")
        largest = mender.attribute("largest", 1)
        value = mender.masked(value, [place], (mender.below_all if largest else mender.above_all)(value.dtype))
        place = value.starts()[axis]
        mender.needs(Size(size.table - chosen.table + 1))
    names = mender.copy([value.name, mender.writer.at_width(chosen)], axis=place)
    groups = tuple((chosen,) if at == axis else group for at, group in enumerate(value.groups))
    mender.set(Ragged(names[0], value.dtype, groups, value.row_added))
    if len(names) > 1:
        mender.set(Ragged(names[1], INT64, groups, value.row_added), 1)


def cumulative_sum(mender: Mender) -> None:
    """CumSum: from the right, it begins in the padding."""
    value, given = mender.ragged(0), mender.constant(1)
    assert given is not None
    axis = int(given.reshape(-1)[0]) % value.rank
    place, size = mender.single(value, axis)
    if size.is_rows:
        mender.refuse(CROSSES_ROWS)
    if size.is_time and mender.attribute("reverse", 0):
        mender.causes.append("it sums from the right, beginning in the padding")
        value = mender.masked(value, [place], 0)
        place = value.starts()[axis]
    (name,) = mender.copy([value.name, mender.writer.constant(np.int64(place))])
    mender.set(value.called(name, zeroed=False))


RULES: dict[str, Rule] = {
    **dict.fromkeys(_NEUTRAL, reduction),
    **dict.fromkeys(_GLOBAL, global_pool),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    "CumSum": cumulative_sum,
    "TopK": top_k,
}
