"""Normalisations: those over the steps take the mean and the variance of each row's own steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.mender import CROSSES_ROWS, Mender, rule
from lengthwise_export.mending.rules.reductions import kept, reduced
from lengthwise_export.mending.values import Numbers, Ragged


@rule("BatchNormalization")
def _batch_normalization(mender: Mender) -> None:
    """In evaluation mode: a scale and a shift for each channel."""
    value = mender.ragged(0)
    if mender.attribute("training_mode", 0) or len([name for name in mender.node.output if name]) > 1:
        mender.refuse(
            f"takes its statistics from the batch (training mode), so it {CROSSES_ROWS}. Call .eval() before the export"
        )
    if value.rank < 2 or len(value.groups[1]) != 1:
        mender.refuse("normalises merged axes")
    if value.groups[1][0].fixed is None:
        mender.refuse("takes the steps for its channels, so its width is fixed: transpose before it")
    if value.is_merged or value.row_added:
        scale, shift, mean, variance = map(mender.array, (1, 2, 3, 4))
        factor = scale / np.sqrt(variance + np.float32(mender.attribute("epsilon", 1e-5)))
        value = _channelwise(mender, "Mul", value, factor)
        value = _channelwise(mender, "Add", value, shift - mean * factor)
        mender.set(value.called(value.name, zeroed=False))
        return
    (name,) = [each for each in mender.copy([value.name, *mender.rest()]) if each]
    mender.set(value.called(name, zeroed=False))


def _channelwise(mender: Mender, kind: str, value: Ragged, numbers: NDArray[Any]) -> Ragged:
    """The tensor combined with a number for each channel."""
    behind = len(value.axes) + value.row_added - value.starts()[1] - 1
    channels = mender.writer.constant(numbers.reshape(-1, *[1] * behind))
    return value.called(mender.emit(kind, [value.name, channels]))


def over(mender: Mender, value: Ragged, axes: Sequence[int], epsilon: float) -> Ragged:
    """The tensor with mean 0 and variance 1 over axes of the original, of each row's own steps."""
    centred = value
    for _ in range(2):  # what the first mean rounds away is as large as a flat sequence's deviation
        centred = mender.combined("Sub", centred, reduced(mender, centred, "ReduceMean", axes, keep=True))
    square = centred.called(mender.emit("Mul", [centred.name, centred.name]))
    variance = reduced(mender, square, "ReduceMean", axes, keep=True)
    number = mender.writer.scalar_of(epsilon, value.dtype)
    deviation = variance.called(mender.emit("Sqrt", [mender.emit("Add", [variance.name, number])]))
    return mender.combined("Div", centred, deviation)


@rule("InstanceNormalization")
def _instance_normalization(mender: Mender) -> None:
    value = mender.ragged(0)
    if any(size.is_rows for group in value.groups[1:] for size in group):
        mender.refuse(CROSSES_ROWS)
    scale, shift = mender.array(1), mender.array(2)
    result = over(mender, value, range(2, value.rank), mender.attribute("epsilon", 1e-5))
    if (scale != 1).any():
        result = _channelwise(mender, "Mul", result, scale)
    if shift.any():
        result = _channelwise(mender, "Add", result, shift)
    mender.set(result.called(result.name, zeroed=False))


@rule("GroupNormalization")
def _group_normalization(mender: Mender) -> None:
    """Groups of channels over all axes behind them."""
    value = mender.ragged(0)
    count = int(mender.attribute("num_groups"))
    scale, shift = mender.array(1), mender.array(2)
    channels = value.groups[1][0].fixed
    if value.is_merged or value.row_added or channels is None:
        mender.refuse("normalises merged axes, or takes the steps for its channels")
    if any(size.is_rows for group in value.groups[1:] for size in group):
        mender.refuse(CROSSES_ROWS)
    behind = value.rank - 2
    if behind != 1:
        mender.refuse(f"normalises {behind} axes behind the channels, where one is expected")
    split = mender.emit("Reshape", [value.name, mender.writer.constant([0, count, channels // count, -1])])
    groups = (value.groups[0], (mender.fixed(count),), (mender.fixed(channels // count),), value.groups[2])
    result = over(mender, Ragged(split, value.dtype, groups), (2, 3), mender.attribute("epsilon", 1e-5))
    joined = mender.emit("Reshape", [result.name, mender.writer.constant([0, channels, -1])])
    if scale.size == count != channels:  # before opset 21 one number for each group
        scale, shift = np.repeat(scale, channels // count), np.repeat(shift, channels // count)
    whole = _channelwise(mender, "Mul", value.called(joined, zeroed=False), scale)
    mender.set(_channelwise(mender, "Add", whole, shift))


@rule("LayerNormalization")
def _layer_normalization(mender: Mender) -> None:
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    axes = range(axis, value.rank)
    sizes = [size for place in axes for size in value.groups[place]]
    if any(size.is_rows for size in sizes):
        mender.refuse(CROSSES_ROWS)
    if any(list(mender.node.output)[1:]):
        mender.refuse("gives its mean and deviation as well")
    if any(size.is_time for size in sizes):
        mender.set(_with_weights(mender, over(mender, value, axes, mender.attribute("epsilon", 1e-5))))
        return
    (name,) = mender.copy([value.name, *mender.rest()], axis=value.starts()[axis])
    mender.set(value.called(name, zeroed=False))


def _with_weights(mender: Mender, value: Ragged) -> Ragged:
    """The normalised tensor with scale and shift, which are computed for each width, such as ones."""
    for kind, place in (("Mul", 1), ("Add", 2)):
        weights = mender.value(place)
        if isinstance(weights, Numbers) and weights.table.size > 2 * mender.count and weights.is_constant:
            mender.refuse(
                "has weights for each step of a fixed width: normalise the features of each step, or the steps without "
                "weights"
            )
        if weights is not None:
            value = mender.combined(kind, value, weights)
    return value.called(value.name, zeroed=False)


@rule("LpNormalization")
def _lp_normalization(mender: Mender) -> None:
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    kind = "ReduceL2" if mender.attribute("p", 2) == 2 else "ReduceL1"
    norm = kept(mender, reduced(mender, value, kind, [axis], keep=False), [axis], value.rank)
    mender.set(mender.combined("Div", value, norm))


@rule("MeanVarianceNormalization")
def _mean_variance_normalization(mender: Mender) -> None:
    value = mender.ragged(0)
    axes = [axis % value.rank for axis in mender.attribute("axes") or (0, 2, 3)]
    mender.set(over(mender, value, axes, 1e-9))
