"""Convolutions along the steps, whose order of addition depends on the width.

onnxruntime computes a convolution along one axis as a product, and adds it in parts whose size depends on the number of
output steps, if there are more than 128 numbers to add. It has other kernels for a convolution along two axes, which
add in one order at every width. So the convolution gets a second axis of size one. The other kernels take any number of
input channels below 16, or a multiple of four; channels of zeros fill up the rest. They are slow for a long kernel over
channels that are no multiple of 16: such a convolution becomes a sum of convolutions over at most 128 numbers each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lengthwise_export.onnx_graphs.protos import OF_ONNX
from lengthwise_export.steady_bits.replacement import PART, GraphFacts, Replacement

_FEW_CHANNELS: Final = 16
_CHANNELS: Final = 4
_LONG: Final = 16  # below such a kernel, the kernels for two axes were about as fast as those for one with any channels
_MAX_GROUPS: Final = 32  # A convolution of more groups is not taken apart
_LISTS: Final = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0, 0]}
"""Attributes with an entry for each axis, and that of an axis of size one."""
_TWO_AXES: Final = "two axes"
"""The key under which a value without the second axis knows the one with it, for a convolution that comes next."""
_FOLLOWS: Final = frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})
"""Operators behind a convolution that onnxruntime computes along with it; the second axis is dropped behind them."""


def rewritten_convolution(node: ir.Node, facts: GraphFacts) -> Replacement | None:
    """A convolution along the steps as one along two axes; one along two axes gets channels of zeros if need be."""
    value, axes, after = node.inputs[0], facts.axes(node.inputs[0]), facts.axes(node.outputs[0])
    weights = facts.constant(node.inputs[1])
    if value is None or axes is None or after is None or weights is None or weights.ndim not in (3, 4):
        return None
    if all(axis.fixed for axis in axes[2:]):
        return None
    added, groups = math.prod(weights.shape[1:]), node.attributes.get_int("group", 1)
    new = Replacement(node)
    if weights.ndim == 4:
        is_filled_up = groups == 1 and _missing(weights) and (facts.every or added > PART)
        return new.gives(_convolved(new, value, weights, 1)) if is_filled_up else None
    if not facts.every and added <= PART and after[2].size > 1:
        return None
    is_apart = groups > 1 and added > PART  # few groups of channels have such kernels; depthwise ones add few numbers
    if is_apart and groups > _MAX_GROUPS:
        return None
    channels, kernel = weights.shape[1:]
    is_slow_along_two_axes = channels > _FEW_CHANNELS and channels % _FEW_CHANNELS and _LONG < kernel <= PART
    if groups == 1 and added > PART and after[2].size > 1 and is_slow_along_two_axes:
        return new.gives(_in_parts(new, value, weights))
    value = value.meta.get(_TWO_AXES) or new.add("Unsqueeze", value, new.constant([2]))
    weights = weights[:, :, None, :]
    value = _group_by_group(new, value, weights, groups) if is_apart else _convolved(new, value, weights, groups)
    value, last = _with_what_follows(new, value, node)
    dropped = new.add("Squeeze", value, new.constant([2]))
    dropped.meta[_TWO_AXES] = value
    new.olds, new.news = [last.outputs[0]], [dropped]
    return new


def _in_parts(new: Replacement, value: ir.Value, weights: NDArray[Any]) -> ir.Value:
    """The sum of convolutions of so few channels each that they add at most `PART` numbers."""
    ends = range(0, weights.shape[1], PART // weights.shape[2])
    parts = [weights[:, start : start + ends.step] for start in ends]
    split = new.constant([part.shape[1] for part in parts])
    values = new.add_outputs("Split", (value, split), len(parts), axis=1)
    bias = new.replaced.inputs[2] if len(new.replaced.inputs) > 2 else None
    convolved = [
        _convolved(new, each, part, 1, None if index else bias, part=f"_{index}")
        for index, (each, part) in enumerate(zip(values, parts, strict=True))
    ]
    return new.total(convolved)


def _missing(weights: NDArray[Any]) -> int:
    """The number of channels of zeros that the kernels need, of weights `[out, in, ..]`."""
    return -weights.shape[1] % _CHANNELS if weights.shape[1] > _FEW_CHANNELS and weights.ndim > 3 else 0


def _convolved(
    new: Replacement, value: ir.Value, weights: NDArray[Any], groups: int, bias: ir.Value | None = None, part: str = ""
) -> ir.Value:
    """The replaced convolution along as many axes as its weights have, or a part of it, which has a name."""
    node = new.replaced
    if groups == 1 and _missing(weights):
        value = new.add("Pad", value, new.constant([0, 0, 0, 0, 0, _missing(weights), 0, 0]))
        weights = np.pad(weights, ((0, 0), (0, _missing(weights)), (0, 0), (0, 0)))
    name = f"{node.name or node.outputs[0].name}/weight{part}"
    attributes = {key: value for key, value in node.attributes.items() if key not in _LISTS}
    attributes["group"] = ir.AttrInt64("group", groups)
    for key, single in _LISTS.items():
        if key in node.attributes:
            sizes = list(node.attributes[key].as_ints())
            if len(sizes) == len(single) and weights.ndim > 3:  # they are those of one axis
                sizes = [0, sizes[0], 0, sizes[1]] if key == "pads" else [*single, *sizes]
            attributes[key] = ir.AttrInt64s(key, sizes)
    if bias is None and len(node.inputs) > 2 and not part:
        bias = node.inputs[2]
    inputs = (value, new.weight(np.ascontiguousarray(weights), name))
    output = new.add("Conv", *inputs) if bias is None else new.add("Conv", *inputs, bias)
    new.nodes[-1].attributes.update(attributes)
    return output


def _group_by_group(new: Replacement, value: ir.Value, weights: NDArray[Any], groups: int) -> ir.Value:
    """A convolution of several groups of channels, as one for each group."""
    into = len(weights) // groups
    channels = new.add_outputs("Split", (value, new.constant([weights.shape[1]] * groups)), groups, axis=1)
    biases: Sequence[ir.Value | None] = [None] * groups
    if len(new.replaced.inputs) > 2:
        biases = new.add_outputs("Split", (new.replaced.inputs[2], new.constant([into] * groups)), groups, axis=0)
    parts = [
        _convolved(new, part, weights[index * into : (index + 1) * into], 1, bias, part=f"_{index}")
        for index, (part, bias) in enumerate(zip(channels, biases, strict=True))
    ]
    return new.add("Concat", *parts, axis=1)


def _with_what_follows(new: Replacement, value: ir.Value, node: ir.Node) -> tuple[ir.Value, ir.Node]:
    """Takes along what onnxruntime computes in one step with a convolution; the last node that is taken along too."""
    last = node
    while True:
        users = [use.node for use in last.outputs[0].uses()]
        if len(users) != 1 or last.outputs[0].is_graph_output() or users[0].op_type not in _FOLLOWS:
            return value, last
        (follows,) = users
        if follows.inputs[0] is not last.outputs[0] or len(follows.outputs) != 1 or follows.domain not in OF_ONNX:
            return value, last
        value = new.add(follows.op_type, value, *follows.inputs[1:])
        new.nodes[-1].attributes.update(follows.attributes)
        new.also.append(follows)
        last = follows
