"""Reductions, softmax and normalisations over the steps: what lies beyond a row's length must not take part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.mender import INT64, Mender, rule
from lengthwise_export.mending.values import CROSSES_ROWS, DataTensor, KnownTensor, Size

_KEEP_SINGLE_NUMBER: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions whose result is the number itself if there is only one."""

_TAKE_NO_STEPS: Final = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"})
"""Reductions that torch computes without any step: their result is then what padding is filled with, 0 or 1."""

_GLOBAL: Final = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "ReduceL2"}


@rule(*_KEEP_SINGLE_NUMBER, *_TAKE_NO_STEPS, "ReduceLogSum", "ReduceLogSumExp")
def _reduction(mender: Mender) -> None:
    """A sum, mean, product, extreme or norm over axes; see `reduced`."""
    value = mender.data_input(0)
    axes = mender.axes_of_node(value.rank)
    if not axes and mender.attribute("noop_with_empty_axes", 0):
        mender.set_output(value)
        return
    keep = bool(mender.attribute("keepdims", 1))
    mender.set_output(reduced(mender, value, mender.node.op_type, axes or [*range(value.rank)], keep=keep))


@rule(*_GLOBAL)
def _global_pool(mender: Mender) -> None:
    """A mean, largest value or norm over all axes behind the channels; see `reduced`."""
    value = mender.data_input(0)
    mender.refuse_if(mender.attribute("p", 2) != 2, "pools with a norm other than 2")
    mender.set_output(reduced(mender, value, _GLOBAL[mender.node.op_type], range(2, value.rank), keep=True))


def reduced(mender: Mender, value: DataTensor, kind: str, axes: Sequence[int], *, keep: bool) -> DataTensor:
    """The tensor reduced over axes of the original, which stay with size 1 if `keep`.

    1. Over axes of fixed size: the operator stays.
    2. Over time: padding gets what adds nothing: 0 for a sum, 1 for a product, an infinity for an extreme. A mean
       becomes a sum divided by each row's own number of steps. Lengths without a step to reduce are left out, but for
       sums, products and norms.
    3. Over the rows of an input with lengths (`lengths.max()`): of a lone sequence this is its own length, so each row
       gets that.
    4. Over the rows of anything else: refused.
    """
    sizes, name = tuple(size for axis in axes for size in value.groups[axis]), mender.node.input[0]
    of_lengths = name in mender.depends_on_lengths and name not in mender.depends_on_steps
    if of_lengths and kind in _KEEP_SINGLE_NUMBER and value.rank == 1 and any(size.is_rows for size in sizes):
        # Of a lone sequence's length, this is the length itself.
        mender.causes.append("it compares the lengths of all rows, and a lone sequence has only its own")
        own = value.with_name(value.name, groups=(), has_added_rows=True)
        return mender.unsqueezed(own, axes) if keep else own
    mender.refuse_rows(sizes)
    dims = [dim for axis in axes for dim in value.dims_of(axis)]
    times = value.time_dims()
    over_time = [dim for dim in dims if dim in times]
    if over_time:
        mender.causes.append("it reduces the padding together with the steps")
        fill: float = int(kind == "ReduceProd")
        if kind in ("ReduceMax", "ReduceMin", "ReduceLogSumExp"):
            fill = mender.neutral_extreme(value.dtype, largest=kind != "ReduceMin", finite=kind == "ReduceLogSumExp")
        value = mender.masked(value, over_time, fill)
        dims = [dim for axis in axes for dim in value.dims_of(axis)]
        for dim in over_time:
            mender.require_lengths(times[dim].by_length >= (kind not in _TAKE_NO_STEPS))
    mean = kind == "ReduceMean" and bool(over_time)
    if mean or kind == "ReduceSum" or mender.axes_are_inputs:
        inputs = [value.name, mender.writer.constant(dims)]
        name = mender.emit("ReduceSum" if mean else kind, inputs, keepdims=0)
    else:
        name = mender.emit(kind, [value.name], axes=dims, keepdims=0)
    groups = tuple(group for axis, group in enumerate(value.groups) if axis not in axes)
    result = DataTensor(name, value.dtype, groups, value.has_added_rows)
    if mean:
        count = mender.axis_size(sizes)
        number = mender.emit("Cast", [mender.writer.size_at_width(count)], to=value.dtype)
        result = mender.broadcast_node("Div", result, KnownTensor(number, count.table.astype(np.float32)))
    return mender.unsqueezed(result, axes) if keep else result


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(mender: Mender) -> None:
    """Shares along an axis: over time, padding gets the smallest finite number, so that its share is 0."""
    value, axis = mender.input_and_axis(-1)
    fill = mender.neutral_extreme(value.dtype, finite=True)
    value = mender.fill_padding(value, axis, fill, "the padding takes a share of its sum")
    mender.keep_node(value, axis=value.first_dims()[axis])


@rule("ArgMax", "ArgMin")
def _arg(mender: Mender) -> None:
    """The index of the largest or smallest element.

    Over time, padding gets an infinity, so that it comes last; of equal values the first is taken, which is a step.
    With `select_last_index` it is refused.
    """
    value, axis = mender.input_and_axis(0)
    _, size = mender.mixed_dim(value, axis)
    mender.refuse_if(
        size.is_time and mender.attribute("select_last_index", 0), "takes the last of several equal values"
    )
    fill = mender.neutral_extreme(value.dtype, largest=mender.node.op_type == "ArgMax")
    value = mender.fill_padding(value, axis, fill, "a step of the padding may be the one it finds")
    (name,) = mender.copy_node([value.name], axis=value.first_dims()[axis], keepdims=0)
    groups = (*value.groups[:axis], *value.groups[axis + 1 :])
    result = DataTensor(name, INT64, groups, value.has_added_rows)
    mender.set_output(mender.unsqueezed(result, [axis]) if mender.attribute("keepdims", 1) else result)


@rule("TopK")
def _top_k(mender: Mender) -> None:
    """The largest or smallest elements, and their indices.

    Over time, padding gets an infinity and comes last. As many as there are steps sorts them: each row's own come
    first. Lengths with fewer steps than are asked for are left out.
    """
    (value, axis), count = mender.input_and_axis(-1), mender.sizes_input(1, "its number of steps is")
    _, size = mender.mixed_dim(value, axis)
    chosen = Size(count.table.reshape(2, -1))
    mender.refuse_if(not mender.attribute("sorted", 1) and chosen.fixed is None, "gives the steps in no order")
    fill = mender.neutral_extreme(value.dtype, largest=bool(mender.attribute("largest", 1)))
    value = mender.fill_padding(value, axis, fill, "a step of the padding may be among those it chooses")
    if size.is_time:
        mender.require_lengths(size.by_length >= chosen.by_length)
    names = mender.copy_node([value.name, mender.writer.size_at_width(chosen)], axis=value.first_dims()[axis])
    for index, (name, dtype) in enumerate(zip(names, (value.dtype, INT64), strict=False)):
        mender.set_output(DataTensor(name, dtype, value.groups_with(axis, chosen), value.has_added_rows), index)


@rule("CumSum")
def _cumulative_sum(mender: Mender) -> None:
    """Sums up to each element: from the left the node stays; from the right, padding gets zeros first."""
    value = mender.data_input(0)
    axis = int(mender.required_constant(1).item()) % value.rank
    mender.mixed_dim(value, axis)
    if mender.attribute("reverse", 0):
        value = mender.fill_padding(value, axis, 0, "it sums from the right, beginning in the padding")
    (name,) = mender.copy_node([value.name, mender.writer.constant(np.int64(value.first_dims()[axis]))])
    mender.set_output(value.with_name(name, zero_padded=False))


@rule("BatchNormalization")
def _batch_normalization(mender: Mender) -> None:
    """A scale and a shift for each channel, from running statistics.

    1. The tensor has the axes of the original: the node stays.
    2. It has merged axes or an added axis of rows: Mul and Add with the same numbers.
    3. In training mode its statistics are of the batch: refused.
    """
    value = mender.data_input(0)
    mender.refuse_if(
        mender.attribute("training_mode", 0) or len([name for name in mender.node.output if name]) > 1,
        f"takes its statistics from the batch (training mode), so it {CROSSES_ROWS}. Call .eval() before the export",
    )
    mender.refuse_if(value.rank < 2 or len(value.groups[1]) != 1, "normalises merged axes")
    mender.refuse_if(
        value.groups[1][0].fixed is None, "takes the steps for its channels, so its width is fixed: transpose before it"
    )
    if value.has_merged_axes or value.has_added_rows:
        scale, shift, mean, variance = map(mender.required_constant, (1, 2, 3, 4))
        factor = scale / np.sqrt(variance + np.float32(mender.attribute("epsilon", 1e-5)))
        value = _channelwise(mender, "Mul", value, factor)
        value = _channelwise(mender, "Add", value, shift - mean * factor)
        mender.set_output(value.with_name(value.name, zero_padded=False))
        return
    mender.keep_node(value)


def _channelwise(mender: Mender, kind: str, value: DataTensor, numbers: NDArray[Any]) -> DataTensor:
    """The tensor combined with a number for each channel, if the numbers are not all neutral."""
    if (numbers == int(kind == "Mul")).all():
        return value
    behind = len(value.dim_sizes) + value.has_added_rows - value.first_dims()[1] - 1
    channels = mender.writer.constant(numbers.reshape(-1, *[1] * behind))
    return value.with_name(mender.emit(kind, [value.name, channels]))


def normalized(mender: Mender, value: DataTensor, axes: Sequence[int], epsilon: float) -> DataTensor:
    """The tensor with mean 0 and variance 1 over axes of the original, of each row's own steps."""
    centred = value
    for _ in range(2):  # twice, as the rounding of the first mean may be as large as the deviation of flat sequences
        centred = mender.broadcast_node("Sub", centred, reduced(mender, centred, "ReduceMean", axes, keep=True))
    square = centred.with_name(mender.emit("Mul", [centred.name, centred.name]))
    variance = reduced(mender, square, "ReduceMean", axes, keep=True)
    number = mender.writer.scalar(epsilon, value.dtype)
    deviation = variance.with_name(mender.emit("Sqrt", [mender.emit("Add", [variance.name, number])]))
    return mender.broadcast_node("Div", centred, deviation)


@rule("InstanceNormalization")
def _instance_normalization(mender: Mender) -> None:
    """Mean 0 and variance 1 over all axes behind the channels, of each row's own steps."""
    value, scale, shift = mender.data_input(0), mender.required_constant(1), mender.required_constant(2)
    mender.refuse_rows(*value.groups[1:])
    result = normalized(mender, value, range(2, value.rank), mender.attribute("epsilon", 1e-5))
    mender.set_output(_channelwise(mender, "Add", _channelwise(mender, "Mul", result, scale), shift))


@rule("GroupNormalization")
def _group_normalization(mender: Mender) -> None:
    """Mean 0 and variance 1 of groups of channels over the steps, of each row's own steps."""
    value, scale, shift = mender.data_input(0), mender.required_constant(1), mender.required_constant(2)
    count = int(mender.attribute("num_groups"))
    channels = value.groups[1][0].fixed
    if value.has_merged_axes or value.has_added_rows or channels is None:
        mender.refuse("normalises merged axes, or takes the steps for its channels")
    mender.refuse_rows(*value.groups[1:])
    mender.refuse_if(value.rank != 3, f"normalises {value.rank - 2} axes behind the channels, where one is expected")
    split = mender.emit("Reshape", [value.name, mender.writer.constant([0, count, channels // count, -1])])
    groups = (value.groups[0], (mender.fixed_size(count),), (mender.fixed_size(channels // count),), value.groups[2])
    result = normalized(mender, DataTensor(split, value.dtype, groups), (2, 3), mender.attribute("epsilon", 1e-5))
    joined = mender.emit("Reshape", [result.name, mender.writer.constant([0, channels, -1])])
    if scale.size == count != channels:  # before opset 21 one number for each group
        scale, shift = np.repeat(scale, channels // count), np.repeat(shift, channels // count)
    whole = _channelwise(mender, "Mul", value.with_name(joined, zero_padded=False), scale)
    mender.set_output(_channelwise(mender, "Add", whole, shift))


@rule("LayerNormalization")
def _layer_normalization(mender: Mender) -> None:
    """Mean 0 and variance 1 over the last axes.

    1. None is of time: the node stays.
    2. One is: mean and variance of each row's own steps, then scale and shift. Weights for each step are refused.
    """
    value, axis = mender.input_and_axis(-1)
    groups = value.groups[axis:]
    mender.refuse_rows(*groups)
    mender.refuse_if(any(list(mender.node.output)[1:]), "gives its mean and deviation as well")
    if not any(size.is_time for group in groups for size in group):
        mender.keep_node(value, axis=value.first_dims()[axis])
        return
    value = normalized(mender, value, range(axis, value.rank), mender.attribute("epsilon", 1e-5))
    for kind, index in (("Mul", 1), ("Add", 2)):  # scale and shift, which are computed for each width, such as ones
        weights = mender.input_value(index)
        if isinstance(weights, KnownTensor) and weights.table.size > 2 * mender.length_count and weights.is_constant:
            mender.refuse("has weights for each step of a fixed width: normalise the features of each step")
        if weights is not None:
            value = mender.broadcast_node(kind, value, weights)
    mender.set_output(value)


@rule("LpNormalization")
def _lp_normalization(mender: Mender) -> None:
    """The tensor divided by its norm along an axis, of each row's own steps."""
    value, axis = mender.input_and_axis(-1)
    kind = "ReduceL2" if mender.attribute("p", 2) == 2 else "ReduceL1"
    mender.set_output(mender.broadcast_node("Div", value, reduced(mender, value, kind, [axis], keep=True)))


@rule("MeanVarianceNormalization")
def _mean_variance_normalization(mender: Mender) -> None:
    """Mean 0 and variance 1 over some axes, of each row's own steps."""
    value = mender.data_input(0)
    axes = [axis % value.rank for axis in mender.attribute("axes") or (0, 2, 3)]
    mender.set_output(normalized(mender, value, axes, 1e-9))
