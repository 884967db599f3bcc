"""Rules for reductions, softmax and normalisations over the steps: the padding must not take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.engine import along, rule
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    INT64,
    DataTensor,
    KnownTensor,
    Size,
    constant_in,
    groups_of_one,
)

_KEEP_SINGLE_NUMBER: Final = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions of a single number that give this number."""

_TAKE_NO_STEPS: Final = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd"})
"""Reductions that torch computes of no steps at all: their result is then 0, or 1 for a product."""

# The reduction that each pool over all steps is
_GLOBAL: Final = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "ReduceL2"}


@rule(*_KEEP_SINGLE_NUMBER, *_TAKE_NO_STEPS, "ReduceLogSum", "ReduceLogSumExp")
def _reduction(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a sum, mean, product, extreme or norm over axes."""
    axes = mender.axes_of_node(value.rank)
    if not axes and mender.attribute("noop_with_empty_axes", 0):
        return value
    keep = bool(mender.attribute("keepdims", 1))
    return reduced(mender, value, mender.node.op_type, axes or [*range(value.rank)], keep=keep)


@rule(*_GLOBAL, requires={"pools with a norm other than 2": lambda mender, _: mender.attribute("p", 2) == 2})
def _global_pool(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a mean, largest value or norm over all axes after the channels, as a reduction over these axes."""
    return reduced(mender, value, _GLOBAL[mender.node.op_type], range(2, value.rank), keep=True)


def reduced(mender: Mender, value: DataTensor, kind: str, axes: Sequence[int], *, keep: bool) -> DataTensor:
    """Reduces a tensor over axes of the original.

    1. Over axes of fixed size: the operator stays.
    2. Over time: the padding gets the operator's neutral element: 0 for a sum, 1 for a product, an infinity for an
       extreme. A mean becomes a sum divided by each row's own number of steps. Lengths at which there is no step are
       left out of the mend, except for sums, products and norms.
    3. Over the rows of an input with lengths (`lengths.max()`): a lone sequence has one length, its own, so each row
       gets that.
    4. Over the rows of any other tensor: refused.

    Args:
        mender: The mender.
        value: The tensor.
        kind: The operator type, such as `ReduceSum`.
        axes: The axes.
        keep: Whether the axes stay, with size 1.
    """
    sizes = tuple(size for axis in axes for size in value.groups[axis])
    # Case 3
    is_of_rows = value.rank == 1 and any(size.is_rows for size in sizes)
    if is_of_rows and value.sources == {"lengths"} and kind in _KEEP_SINGLE_NUMBER:
        cause = "it compares the lengths of all rows, and a lone sequence has only its own"
        result = value.with_name(value.name, groups=(), has_added_rows=True).because(cause)
        return mender.unsqueezed(result, axes) if keep else result
    mender.refuse_rows(sizes)
    # Case 2
    times = value.time_dims()
    over_time = {dim: times[dim] for axis in axes for dim in value.dims_of(axis) if dim in times}
    fill = float(kind == "ReduceProd")
    if kind in ("ReduceMax", "ReduceMin", "ReduceLogSumExp"):
        fill = mender.neutral_extreme(value.dtype, largest=kind != "ReduceMin", finite=kind == "ReduceLogSumExp")
    value = mender.masked(value, over_time, fill, "it reduces the padding together with the steps")
    for size in () if kind in _TAKE_NO_STEPS else over_time.values():
        mender.require_lengths(size.by_length > 0)
    dims = [dim for axis in axes for dim in value.dims_of(axis)]
    is_mean_over_time = kind == "ReduceMean" and bool(over_time)
    if is_mean_over_time or kind == "ReduceSum" or mender.axes_are_inputs:
        inputs = [value.name, mender.writer.constant(dims)]
        name = mender.emit("ReduceSum" if is_mean_over_time else kind, inputs, keepdims=0)
    else:
        name = mender.emit(kind, [value.name], axes=dims, keepdims=0)
    result = value.with_name(name, groups=value.without_axes(axes), zero_padded=False)
    if is_mean_over_time:  # the count is known for each length, so each row gets its own
        count = mender.axis_size(sizes)
        divisor = mender.writer.cast(mender.writer.size_at_width(count), value.dtype)
        result = mender.broadcast_node("Div", result, KnownTensor(divisor, count.table.astype(np.float32)))
    return mender.unsqueezed(result, axes) if keep else result


@rule("Softmax", "LogSoftmax", "Hardmax", takes=along(-1))
def _softmax(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends a softmax along an axis: over time, the padding gets the smallest finite number, so its share is 0."""
    fill = mender.neutral_extreme(value.dtype, finite=True)
    value = mender.fill_padding(value, axis, fill, "the padding takes a share of its sum")
    return mender.keep_node(value, axis=value.first_dims()[axis])


@rule(
    "ArgMax",
    "ArgMin",
    takes=along(0),
    requires={
        "takes the last of several equal values": lambda mender, value, axis: (
            not (mender.attribute("select_last_index", 0) and value.groups[axis][0].is_time)
        )
    },
)
def _arg(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends the index of the largest or smallest element along an axis.

    Over time, the padding gets an infinity, so it is chosen last; of equal values the first is taken, which is a step.
    With `select_last_index`, which takes the last one, a node over time is refused.
    """
    fill = mender.neutral_extreme(value.dtype, largest=mender.node.op_type == "ArgMax")
    value = mender.fill_padding(value, axis, fill, "a step of the padding may be the one it finds")
    kept = mender.keep_node(value, axis=value.first_dims()[axis], keepdims=0)
    result = replace(kept, dtype=INT64, groups=value.without_axes([axis]))
    return mender.unsqueezed(result, [axis]) if mender.attribute("keepdims", 1) else result


@rule("TopK", takes=along(-1))
def _top_k(mender: Mender, value: DataTensor, axis: int) -> list[DataTensor]:
    """Mends the k largest or smallest elements along an axis, with their indices.

    Over time, the padding gets an infinity, so it is chosen last. Lengths with fewer steps than k are left out, so a
    fixed k never chooses padding. A k that depends on the number of steps may: only if the result is sorted do each
    row's own steps come first.
    """
    # k has the shape [1], and its table `[2, lengths, 1]`: without the last axis it is that of a size.
    new_size = Size(mender.sizes_input(1, "its number of steps is").table.reshape(2, -1))
    _, size = mender.mixed_dim(value, axis)
    mender.refuse_if(not mender.attribute("sorted", 1) and new_size.fixed is None, "gives the steps in no order")
    fill = mender.neutral_extreme(value.dtype, largest=bool(mender.attribute("largest", 1)))
    value = mender.fill_padding(value, axis, fill, "a step of the padding may be among those it chooses")
    if size.is_time:
        mender.require_lengths(size.by_length >= new_size.by_length)
    names = mender.copy_node([value.name, mender.writer.size_at_width(new_size)], axis=value.first_dims()[axis])
    chosen = replace(value, groups=value.groups_with(axis, new_size), zero_padded=False)
    return [chosen.with_name(name, dtype=dtype) for name, dtype in zip(names, (value.dtype, INT64), strict=False)]


@rule("CumSum")
def _cumulative_sum(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends cumulative sums: from the first element on, the node stays; in reverse, the padding gets 0."""
    axis = int(mender.constant_input(1).item()) % value.rank
    mender.mixed_dim(value, axis)
    if mender.attribute("reverse", 0):
        value = mender.fill_padding(value, axis, 0, "it sums from the right, beginning in the padding")
    return mender.keep_node(value, [mender.writer.constant(np.int64(value.first_dims()[axis]))])


@rule(
    "BatchNormalization",
    requires={
        f"takes its statistics from the batch (training mode), so it {CROSSES_ROWS}. Call .eval() before the export": (
            lambda mender, _: not mender.attribute("training_mode", 0) and mender.output_count == 1
        ),
        "normalises merged axes": lambda _, value: value.rank >= 2 and len(value.groups[1]) == 1,
        "takes the steps for its channels, so its width is fixed: transpose before it": (
            lambda _, value: value.groups[1][0].fixed is not None
        ),
    },
)
def _batch_normalization(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a scale and a shift for each channel, which follow from running statistics.

    1. The tensor has the axes of the original: the node stays.
    2. It has merged axes or added rows: Mul and Add with the same numbers, which broadcast over any axes.
    3. In training mode its statistics are of the batch: refused.
    """
    if value.has_original_axes:  # case 1
        return mender.keep_node(value)
    # Case 2
    scale, shift, mean, variance = map(mender.constant_input, (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + np.float32(mender.attribute("epsilon", 1e-5)))
    return replace(_scaled_and_shifted(mender, value, factor, shift - mean * factor), zero_padded=False)


def _scaled_and_shifted(mender: Mender, value: DataTensor, scale: NDArray[Any], shift: NDArray[Any]) -> DataTensor:
    """The tensor times `scale` plus `shift`, which are `[channels]`; the channels are axis 1."""
    for kind, numbers, neutral in (("Mul", scale, 1), ("Add", shift, 0)):
        if (numbers != neutral).any():
            dims_behind = value.dim_count - value.first_dims()[1] - 1
            channels = mender.writer.constant(numbers.reshape(-1, *[1] * dims_behind))
            value = value.with_name(mender.emit(kind, [value.name, channels]))
    return value


def normalized(mender: Mender, value: DataTensor, axes: Sequence[int], epsilon: float) -> DataTensor:
    """Normalises a tensor to mean 0 and variance 1 over axes of the original, both of each row's own steps."""
    centred = value
    for _ in range(2):  # twice, as the rounding of the first mean may be as large as the deviation of flat sequences
        mean = reduced(mender, centred, "ReduceMean", axes, keep=True)
        centred = mender.broadcast_node("Sub", centred, mean)
    square = centred.with_name(mender.emit("Mul", [centred.name, centred.name]))
    variance = reduced(mender, square, "ReduceMean", axes, keep=True)
    positive = mender.emit("Add", [variance.name, mender.writer.scalar(epsilon, value.dtype)])
    return mender.broadcast_node("Div", centred, variance.with_name(mender.emit("Sqrt", [positive])))


@rule("InstanceNormalization")
def _instance_normalization(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a normalisation over all axes after the channels: by mean and variance of each row's own steps."""
    scale, shift = map(mender.constant_input, (1, 2))
    mender.refuse_rows(*value.groups[1:])
    result = normalized(mender, value, range(2, value.rank), mender.attribute("epsilon", 1e-5))
    return _scaled_and_shifted(mender, result, scale, shift)


@rule(
    "GroupNormalization",
    requires={
        "normalises merged axes, or takes the steps for its channels": (
            lambda _, value: value.has_original_axes and value.groups[1][0].fixed is not None
        ),
        CROSSES_ROWS: lambda _, value: not any(size.is_rows for size in value.dim_sizes[1:]),
    },
)
def _group_normalization(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a normalisation over groups of channels and the steps: by mean and variance of each row's own steps.

    Only `[rows, channels, steps]` is mended.
    """
    (scale, shift), count = map(mender.constant_input, (1, 2)), int(mender.attribute("num_groups"))
    mender.refuse_if(value.rank != 3, f"normalises {value.rank - 2} axes behind the channels, where one is expected")
    channels = int(value.groups[1][0].table[0, 0])
    # [rows, channels, steps] -> [rows, count, channels of a group, steps], and back
    split = mender.emit("Reshape", [value.name, mender.writer.constant([0, count, channels // count, -1])])
    split_channels = groups_of_one(map(mender.fixed_size, (count, channels // count)))
    tensor = value.with_name(split, groups=(value.groups[0], *split_channels, value.groups[2]))
    result = normalized(mender, tensor, (2, 3), mender.attribute("epsilon", 1e-5))
    joined = mender.emit("Reshape", [result.name, mender.writer.constant([0, channels, -1])])
    if scale.size == count != channels:  # before opset 21 there was one number for each group
        scale, shift = np.repeat(scale, channels // count), np.repeat(shift, channels // count)
    result = result.with_name(joined, groups=value.groups, zero_padded=False)
    return _scaled_and_shifted(mender, result, scale, shift)


@rule(
    "LayerNormalization",
    takes=along(-1),
    requires={
        CROSSES_ROWS: lambda _, value, axis: not any(size.is_rows for group in value.groups[axis:] for size in group),
        "gives its mean and deviation as well": lambda mender, *_: mender.output_count == 1,
    },
)
def _layer_normalization(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends a normalisation over the last axes, with a scale and a shift.

    1. None of these axes is of time: the node stays.
    2. One is: mean and variance of each row's own steps. A scale or shift for each step of a fixed width is refused.
    """
    if not any(size.is_time for group in value.groups[axis:] for size in group):
        return mender.keep_node(value, axis=value.first_dims()[axis])
    value = normalized(mender, value, range(axis, value.rank), mender.attribute("epsilon", 1e-5))
    # The scale and the shift have one number, or are computed for each width, such as ones.
    for kind, index in (("Mul", 1), ("Add", 2)):
        weights = mender.input_value(index)
        constant = constant_in(weights)
        if constant is not None and constant.size > 1:
            mender.refuse("has weights for each step of a fixed width: normalise the features of each step")
        if weights is not None:
            value = mender.broadcast_node(kind, value, weights)
    return value


@rule("LpNormalization", takes=along(-1))
def _lp_normalization(mender: Mender, value: DataTensor, axis: int) -> DataTensor:
    """Mends the division by the L1 or L2 norm along an axis: by the norm of each row's own steps."""
    kind = "ReduceL2" if mender.attribute("p", 2) == 2 else "ReduceL1"
    return mender.broadcast_node("Div", value, reduced(mender, value, kind, [axis], keep=True))


@rule("MeanVarianceNormalization")
def _mean_variance_normalization(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a normalisation over some axes: by mean and variance of each row's own steps."""
    axes = [axis % value.rank for axis in mender.attribute("axes") or (0, 2, 3)]
    return normalized(mender, value, axes, 1e-9)
