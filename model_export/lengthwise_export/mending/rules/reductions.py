"""Reductions and softmax over the steps: what lies beyond a row's length must not take part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from lengthwise_export.mending.mender import CROSSES_ROWS, INT64, Mender, rule
from lengthwise_export.mending.sizes import Size
from lengthwise_export.mending.values import Numbers, Ragged

_OF_ZEROS: Final = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare")
_OTHERS: Final = ("ReduceProd", "ReduceMax", "ReduceMin", "ReduceLogSumExp")

_OF_ONE: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions that give a lone number back."""

_OF_NONE: Final = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"})
"""Those that torch answers where there is no step, with what they fill padding with."""

_GLOBAL: Final = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "ReduceL2"}


def _neutral(mender: Mender, kind: str, dtype: int) -> float:
    """The number that changes nothing in a reduction."""
    if kind in ("ReduceMax", "ReduceMin"):
        return mender.last_choice(dtype, largest=kind == "ReduceMax")
    return mender.lowest(dtype) if kind == "ReduceLogSumExp" else int(kind == "ReduceProd")


@rule(*_OF_ZEROS, *_OTHERS)
def _reduction(mender: Mender) -> None:
    value = mender.ragged(0)
    axes = mender.axes(value.rank)
    if not axes and mender.attribute("noop_with_empty_axes", 0):
        mender.set(value)
        return
    keep = bool(mender.attribute("keepdims", 1))
    mender.set(reduced(mender, value, mender.node.op_type, axes or [*range(value.rank)], keep=keep))


@rule(*_GLOBAL)
def _global_pool(mender: Mender) -> None:
    value = mender.ragged(0)
    if mender.attribute("p", 2) != 2:
        mender.refuse("pools with a norm other than 2")
    mender.set(reduced(mender, value, _GLOBAL[mender.node.op_type], range(2, value.rank), keep=True))


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
        value = mender.masked(value, over_time, _neutral(mender, kind, value.dtype))
        places = [place for axis in axes for place in value.indexes(axis)]
        for place in over_time:
            mender.needs(times[place], 0 if kind in _OF_NONE else 1)
    mean = kind == "ReduceMean" and bool(over_time)
    if mean or kind == "ReduceSum" or mender.axes_are_inputs:
        inputs = [value.name, mender.writer.constant(places)]
        name = mender.emit("ReduceSum" if mean else kind, inputs, keepdims=0)
    else:
        name = mender.emit(kind, [value.name], axes=places, keepdims=0)
    groups = tuple(group for axis, group in enumerate(value.groups) if axis not in axes)
    result = Ragged(name, value.dtype, groups, value.row_added)
    if mean:
        count = mender.size_of(tuple(sizes))
        number = mender.cast(mender.writer.at_width(count), value.dtype)
        result = mender.combined("Div", result, Numbers(number, count.table.astype(np.float32)))
    return kept(mender, result, axes, value.rank) if keep else result


def kept(mender: Mender, value: Ragged, axes: Sequence[int], rank: int) -> Ragged:
    """A reduced tensor with axes of size 1 in the place of those it was reduced over."""
    left = iter(value.groups)
    groups = tuple((mender.one,) if axis in axes else next(left) for axis in range(rank))
    result = value.called(value.name, groups=groups)
    return value.called(mender.unsqueezed(value.name, [result.starts()[axis] for axis in sorted(axes)]), groups=groups)


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(mender: Mender) -> None:
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    mender.within(value, axis)
    value = mender.padded_with(value, axis, mender.lowest(value.dtype), "the padding takes a share of its sum")
    (name,) = mender.copy([value.name], axis=value.starts()[axis])
    mender.set(value.called(name, zeroed=False))


@rule("ArgMax", "ArgMin")
def _arg(mender: Mender) -> None:
    value = mender.ragged(0)
    axis = mender.attribute("axis", 0) % value.rank
    _, size = mender.within(value, axis)
    if size.is_time and mender.attribute("select_last_index", 0):
        mender.refuse("takes the last of several equal values")
    fill = mender.last_choice(value.dtype, largest=mender.node.op_type == "ArgMax")
    value = mender.padded_with(value, axis, fill, "a step of the padding may be the one it finds")
    (name,) = mender.copy([value.name], axis=value.starts()[axis], keepdims=0)
    groups = tuple(group for at, group in enumerate(value.groups) if at != axis)
    result = Ragged(name, INT64, groups, value.row_added)
    mender.set(kept(mender, result, [axis], value.rank) if mender.attribute("keepdims", 1) else result)


@rule("TopK")
def _top_k(mender: Mender) -> None:
    """Padding must be the last choice. With as many as there are steps it sorts."""
    value, count = mender.ragged(0), mender.value(1)
    axis = mender.attribute("axis", -1) % value.rank
    _, size = mender.within(value, axis)
    if not isinstance(count, Numbers):
        mender.refuse("its number of steps is computed from the data")
    chosen = Size(count.table.reshape(2, -1))
    if not mender.attribute("sorted", 1) and chosen.fixed is None:
        mender.refuse("gives the steps in no order")
    fill = mender.last_choice(value.dtype, largest=bool(mender.attribute("largest", 1)))
    value = mender.padded_with(value, axis, fill, "a step of the padding may be among those it chooses")
    if size.is_time:
        mender.needs(Size(size.table - chosen.table + 1))
    names = mender.copy([value.name, mender.writer.at_width(chosen)], axis=value.starts()[axis])
    for place, (name, dtype) in enumerate(zip(names, (value.dtype, INT64), strict=False)):
        mender.set(Ragged(name, dtype, value.resized(axis, chosen), value.row_added), place)


@rule("CumSum")
def _cumulative_sum(mender: Mender) -> None:
    """From the right, it begins in the padding."""
    value = mender.ragged(0)
    axis = int(mender.array(1).reshape(-1)[0]) % value.rank
    mender.within(value, axis)
    if mender.attribute("reverse", 0):
        value = mender.padded_with(value, axis, 0, "it sums from the right, beginning in the padding")
    (name,) = mender.copy([value.name, mender.writer.constant(np.int64(value.starts()[axis]))])
    mender.set(value.called(name, zeroed=False))
