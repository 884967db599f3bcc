"""Convolutions along the steps, whose order of addition depends on the width.

onnxruntime computes a convolution along one axis as a product, and adds it in parts whose size depends on the number of
output steps, if there are more than 128 numbers to add. It has other kernels for a convolution along two axes, which
add in one order at every width. So the convolution gets a second axis of size one. The other kernels take any number of
input channels below 16, or a multiple of four; channels of zeros fill up the rest. They are slow for a long kernel over
channels that are no multiple of 16: such a convolution becomes a sum of convolutions over at most 128 numbers each.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from lengthwise_export.onnx_graphs.protos import OF_ONNX, attributes_of
from lengthwise_export.steady_bits.replacement import PART, GraphFacts, Replacement

_FEW_CHANNELS: Final = 16
_CHANNELS: Final = 4
_LONG: Final = 16  # below such a kernel, the kernels for two axes were about as fast as those for one with any channels
_MAX_GROUPS: Final = 32  # A convolution of more groups is not taken apart
_LISTS: Final = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0, 0]}
"""Attributes with an entry for each axis, and that of an axis of size one."""
_FOLLOWS: Final = frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})
"""Operators behind a convolution that onnxruntime computes along with it; the second axis is dropped behind them."""


def rewritten_convolution(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """A convolution along the steps as one along two axes; one along two axes gets channels of zeros if need be."""
    value, kernels, bias = [*node.input, ""][:3]
    axes, after, weights = facts.axes(value), facts.axes(node.output[0]), facts.constant(kernels)
    if axes is None or after is None or weights is None or weights.ndim not in (3, 4):
        return None
    if all(axis.fixed for axis in axes[2:]):
        return None
    added, groups = math.prod(weights.shape[1:]), attributes_of(node).get("group", 1)
    new = Replacement(node, facts)
    if weights.ndim == 4:
        is_filled_up = groups == 1 and _missing(weights) and (facts.every or added > PART)
        return new.gives(_convolved(new, value, weights, groups, bias)) if is_filled_up else None
    if not facts.every and added <= PART and after[2].size > 1:
        return None
    is_apart = groups > 1 and added > PART  # few groups of channels have such kernels; depthwise ones add few numbers
    if is_apart and groups > _MAX_GROUPS:
        return None
    channels, kernel = weights.shape[1:]
    is_slow_along_two_axes = channels > _FEW_CHANNELS and channels % _FEW_CHANNELS and _LONG < kernel <= PART
    if groups == 1 and added > PART and after[2].size > 1 and is_slow_along_two_axes:
        return new.gives(_in_parts(new, value, weights, bias))
    value = facts.two_axes.get(value) or new.unsqueezed(value, [2])
    convolved = _group_by_group if is_apart else _convolved
    value = _with_what_follows(new, convolved(new, value, weights[:, :, None, :], groups, bias), facts)
    facts.two_axes[new.replaced[-1].output[0]] = value
    return new.gives(new.squeezed(value, [2]))


def _in_parts(new: Replacement, value: str, weights: NDArray[Any], bias: str) -> str:
    """A convolution as a sum of convolutions of a few channels each, which add at most `PART` numbers."""
    ends = range(0, weights.shape[1], PART // weights.shape[2])
    parts = [weights[:, start : start + ends.step] for start in ends]
    split = new.constant([part.shape[1] for part in parts])
    values = new.emit_outputs("Split", [value, split], len(parts), axis=1)
    biases = [bias] + [""] * (len(parts) - 1)
    each = zip(values, parts, [1] * len(parts), biases, strict=True)
    return new.total([_convolved(new, *part) for part in each])


def _missing(weights: NDArray[Any]) -> int:
    """The number of channels of zeros to add, for weights `[out, in, ..]`, to a multiple of `_CHANNELS`."""
    return -weights.shape[1] % _CHANNELS if weights.shape[1] > _FEW_CHANNELS and weights.ndim > 3 else 0


def _convolved(new: Replacement, value: str, weights: NDArray[Any], groups: int, bias: str) -> str:
    """Writes a convolution with these weights `[out, in, ...]`, or one group of it; returns the name of its output."""
    node = new.replaced[0]
    if groups == 1 and _missing(weights):
        value = new.emit("Pad", [value, new.constant([0, 0, 0, 0, 0, _missing(weights), 0, 0])])
        weights = np.pad(weights, ((0, 0), (0, _missing(weights)), (0, 0), (0, 0)))
    attributes: dict[str, Any] = {"group": groups}
    for key, sizes in attributes_of(node).items():
        single = _LISTS.get(key, [])
        if single and len(sizes) == len(single) and weights.ndim > 3:  # they are those of one axis
            attributes[key] = [0, sizes[0], 0, sizes[1]] if key == "pads" else [*single, *sizes]
    inputs = [value, new.constant(weights), *([bias] if bias else [])]
    return new.copy(node, inputs, name_suffix="steady", **attributes)[0]


def _group_by_group(new: Replacement, value: str, weights: NDArray[Any], groups: int, bias: str) -> str:
    """A convolution of several groups of channels, as one for each group."""
    channels = new.emit_outputs("Split", [value, new.constant([weights.shape[1]] * groups)], groups, axis=1)
    biases = [""] * groups
    if bias:
        biases = new.emit_outputs("Split", [bias, new.constant([len(weights) // groups] * groups)], groups, axis=0)
    each = zip(channels, np.split(weights, groups), [1] * groups, biases, strict=True)
    return new.emit("Concat", [_convolved(new, *part) for part in each], axis=1)


def _with_what_follows(new: Replacement, value: str, facts: GraphFacts) -> str:
    """Copies the nodes that follow a convolution and that onnxruntime fuses with it; returns the last copy's output.

    They are added to `new.replaced`, too.
    """
    while True:
        output = new.replaced[-1].output[0]
        users = facts.users(output)
        if len(users) != 1 or output in facts.outputs or users[0].op_type not in _FOLLOWS:
            return value
        (user,) = users
        if user.input[0] != output or len(user.output) != 1 or user.domain not in OF_ONNX:
            return value
        (value,) = new.copy(user, [value, *user.input[1:]], name_suffix="steady")
        new.replaced.append(user)
