"""Normalisations: those over the steps take the mean and the variance of each row's own steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lengthwise_export.mending.mender import CROSSES_ROWS, Mender, Rule
from lengthwise_export.mending.rules.reductions import kept, reduced
from lengthwise_export.mending.values import Numbers, Ragged, Value


def batch_normalization(mender: Mender) -> None:
    """BatchNormalization in evaluation mode: a scale and a shift for each channel."""
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
        scale, shift, mean, variance = (mender.constant(place) for place in (1, 2, 3, 4))
        assert scale is not None
        assert shift is not None
        assert mean is not None
        assert variance is not None
        factor = scale / np.sqrt(variance + np.float32(mender.attribute("epsilon", 1e-5)))
        name = _channelwise(mender, "Mul", value, factor)
        name = _channelwise(mender, "Add", value.called(name), shift - mean * factor)
        mender.set(value.called(name, zeroed=False))
        return
    (name,) = [each for each in mender.copy([value.name, *list(mender.node.input)[1:]]) if each]
    mender.set(value.called(name, zeroed=False))


def _channelwise(mender: Mender, kind: str, value: Ragged, numbers: NDArray[np.float32], axis: int = 1) -> str:
    """The tensor combined with a number for each channel."""
    behind = len(value.axes) + value.row_added - value.starts()[axis] - 1
    return mender.emit(kind, [value.name, mender.writer.constant(np.asarray(numbers).reshape(-1, *[1] * behind))])


def over(mender: Mender, value: Ragged, axes: Sequence[int], epsilon: float) -> Ragged:
    """The tensor with mean 0 and variance 1 over axes of the original, of each row's own steps."""
    centred = value
    for _ in range(2):  # what the first mean rounds away is as large as a flat sequence's deviation
        centred = _combined(mender, "Sub", centred, reduced(mender, centred, "ReduceMean", axes, keep=True))
    square = centred.called(mender.emit("Mul", [centred.name, centred.name]))
    variance = reduced(mender, square, "ReduceMean", axes, keep=True)
    number = mender.writer.scalar_of(epsilon, value.dtype)
    deviation = variance.called(mender.emit("Sqrt", [mender.emit("Add", [variance.name, number])]))
    return _combined(mender, "Div", centred, deviation)


def _combined(mender: Mender, kind: str, left: Value, right: Value) -> Ragged:
    (one, other), groups, row_added = mender.align([left, right])
    return Ragged(mender.emit(kind, [one.name, other.name]), one.dtype, groups, row_added)


def instance_normalization(mender: Mender) -> None:
    """InstanceNormalization: each channel over all axes behind it."""
    value = mender.ragged(0)
    if any(size.is_rows for group in value.groups[1:] for size in group):
        mender.refuse(CROSSES_ROWS)
    scale, shift = mender.constant(1), mender.constant(2)
    assert scale is not None
    assert shift is not None
    result = over(mender, value, range(2, value.rank), mender.attribute("epsilon", 1e-5))
    if (scale != 1).any():
        result = result.called(_channelwise(mender, "Mul", result, scale))
    if shift.any():
        result = result.called(_channelwise(mender, "Add", result, shift))
    mender.set(result.called(result.name, zeroed=False))


def group_normalization(mender: Mender) -> None:
    """GroupNormalization, as its operator: groups of channels over all axes behind them."""
    value = mender.ragged(0)
    count = int(mender.attribute("num_groups"))
    scale, shift = mender.constant(1), mender.constant(2)
    channels = value.groups[1][0].fixed
    assert scale is not None
    assert shift is not None
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
    whole = value.called(joined, zeroed=False)
    whole = whole.called(_channelwise(mender, "Mul", whole, scale))
    mender.set(whole.called(_channelwise(mender, "Add", whole, shift)))


def layer_normalization(mender: Mender) -> None:
    """LayerNormalization: over the axes from `axis` on."""
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    axes = range(axis, value.rank)
    sizes = [size for place in axes for size in value.groups[place]]
    if any(size.is_rows for size in sizes):
        mender.refuse(CROSSES_ROWS)
    if any(name for name in list(mender.node.output)[1:]):
        mender.refuse("gives its mean and deviation as well")
    if any(size.is_time for size in sizes):
        mender.set(_with_weights(mender, over(mender, value, axes, mender.attribute("epsilon", 1e-5))))
        return
    first = value.starts()[axis]
    (name,) = mender.copy([value.name, *list(mender.node.input)[1:]], axis=first)
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
            value = _combined(mender, kind, value, weights)
    return value.called(value.name, zeroed=False)


def lp_normalization(mender: Mender) -> None:
    """LpNormalization: divides by the norm along an axis."""
    value = mender.ragged(0)
    axis = mender.attribute("axis", -1) % value.rank
    kind = "ReduceL2" if mender.attribute("p", 2) == 2 else "ReduceL1"
    norm = kept(mender, reduced(mender, value, kind, [axis], keep=False), [axis], value.rank)
    mender.set(_combined(mender, "Div", value, norm))


def mean_variance_normalization(mender: Mender) -> None:
    """MeanVarianceNormalization."""
    value = mender.ragged(0)
    axes = [axis % value.rank for axis in mender.attribute("axes") or (0, 2, 3)]
    mender.set(over(mender, value, axes, 1e-9))


RULES: dict[str, Rule] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
}
