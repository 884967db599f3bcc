"""The rewrite of convolutions along the steps, whose order of addition depends on the width.

onnxruntime computes a convolution along one axis as a product, and adds it in parts whose size depends on the number of
output steps, if there are more than 128 numbers (`PART`) to add. It has other kernels for a convolution along two axes,
which add in one order at every width. So the convolution gets a second axis of size one. The other kernels take any
number of input channels up to 16, or a multiple of four; channels of zeros fill up the rest. They are slow for a long
kernel over channels that are no multiple of 16: such a convolution becomes a sum of convolutions over at most 128
numbers each.

A value is its name in the graph. `[out, in, ...]` is the shape of weights: output channels, input channels of a group,
and the kernel's size along each axis. *Groups* are ONNX's: parts of the channels that are convolved apart.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from lengthwise_export.onnx_graphs.protos import OF_ONNX, attributes_of
from lengthwise_export.steady_bits.replacement import PART, GraphFacts, Replacement

_FEW_CHANNELS: Final = 16  # up to this number of input channels, the kernels for two axes take any number
_CHANNELS: Final = 4  # above that they take multiples of this number
_LONG: Final = 16  # steps of a kernel: for shorter ones, the kernels for two axes were about as fast as those for one
_MAX_GROUPS: Final = 32  # a convolution of more groups is not split into one for each
_ENTRIES_OF_ONE: Final = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0, 0]}
"""Attributes with entries for each axis, and the entries of an axis of size one."""
_FUSED: Final = frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})
"""Operators after a convolution that onnxruntime computes along with it; the second axis is dropped after them."""


def rewritten_convolution(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites a convolution along the steps as one along two axes, in one of four forms.

    1. It is along two axes already: channels of zeros are added, if the kernels need that.
    2. It has a long kernel and an unfavourable number of channels: a sum of convolutions of fewer channels.
    3. It has a few groups that add more than `PART` numbers each: a convolution for each group.
    4. Else: the same convolution along two axes.

    In the forms 3 and 4, nodes that onnxruntime fuses with the convolution are replaced, too. The value with two axes
    after them is kept in `facts.two_axes`, so that a next convolution takes it without going back to one axis.

    Returns:
        The replacement; None if the bits of the node do not depend on the batch, or if none of the forms fits it.
    """
    value, kernels, bias = [*node.input, ""][:3]
    axes, output_axes, weights = facts.axes(value), facts.axes(node.output[0]), facts.constant(kernels)
    if axes is None or output_axes is None or weights is None:
        return None
    if weights.ndim not in (3, 4) or all(axis.fixed for axis in axes[2:]):
        return None
    added = math.prod(weights.shape[1:])  # how many numbers are added for one number of the output
    groups = attributes_of(node).get("group", 1)
    new = Replacement(node, facts)
    # Form 1
    if weights.ndim == 4:
        is_filled_up = groups == 1 and _missing_channels(weights) and (facts.at_all_sizes or added > PART)
        return new.with_outputs(_convolved(new, value, weights, groups, bias)) if is_filled_up else None
    may_lose_bits = facts.at_all_sizes or added > PART or output_axes[2].size <= 1
    splits_groups = groups > 1 and added > PART  # such sums in many groups are rare: depthwise ones add few numbers
    if not may_lose_bits or (splits_groups and groups > _MAX_GROUPS):
        return None
    # Form 2, which a batch with one step of output does not need
    channels, kernel = weights.shape[1:]
    is_slow_along_two_axes = channels > _FEW_CHANNELS and channels % _FEW_CHANNELS and _LONG < kernel <= PART
    if groups == 1 and added > PART and output_axes[2].size > 1 and is_slow_along_two_axes:
        return new.with_outputs(_sum_of_convolutions(new, value, weights, bias))
    # Forms 3 and 4: the second axis comes in front of the steps, and is removed after the nodes that are fused.
    value = facts.two_axes.get(value) or new.unsqueezed(value, [2])
    convolve = _group_by_group if splits_groups else _convolved
    value = convolve(new, value, weights[:, :, None, :], groups, bias)
    value = _with_fused_nodes(new, value, facts)
    facts.two_axes[new.replaced[-1].output[0]] = value
    return new.with_outputs(new.squeezed(value, [2]))


def _sum_of_convolutions(new: Replacement, value: str, weights: NDArray[Any], bias: str) -> str:
    """Writes a convolution along one axis as a sum of convolutions of a few input channels each.

    Each adds at most `PART` numbers, so the kernel must not be longer than that.

    Args:
        new: Gets the nodes.
        value: The input.
        weights: `[out, in, kernel]`.
        bias: The bias; empty for none.

    Returns:
        The output.
    """
    channels = PART // weights.shape[2]
    parts = [weights[:, start : start + channels] for start in range(0, weights.shape[1], channels)]
    sizes = new.constant([part.shape[1] for part in parts])
    values = new.emit_outputs("Split", [value, sizes], len(parts), axis=1)
    inputs = zip(values, parts, [bias] + [""] * (len(parts) - 1), strict=True)
    return new.total([_convolved(new, part, part_weights, 1, part_bias) for part, part_weights, part_bias in inputs])


def _missing_channels(weights: NDArray[Any]) -> int:
    """The number of channels of zeros to add to weights `[out, in, ...]` along two axes; 0 for other weights."""
    return -weights.shape[1] % _CHANNELS if weights.shape[1] > _FEW_CHANNELS and weights.ndim > 3 else 0


def _convolved(new: Replacement, value: str, weights: NDArray[Any], groups: int, bias: str) -> str:
    """Writes the replaced convolution with other weights.

    Args:
        new: Gets the nodes; its first replaced node is the convolution.
        value: The input.
        weights: `[out, in, ...]`; with a second axis of the kernel if the input has one.
        groups: The number of groups.
        bias: The bias; empty for none.

    Returns:
        The output.
    """
    node = new.replaced[0]
    if groups == 1 and (missing := _missing_channels(weights)):
        value = new.emit("Pad", [value, new.constant([0, 0, 0, 0, 0, missing, 0, 0])])
        weights = np.pad(weights, ((0, 0), (0, missing), (0, 0), (0, 0)))
    # The attributes for each axis, which the node has for one axis, with those of a second axis of size one in front
    attributes: dict[str, Any] = {"group": groups}
    for key, entries in attributes_of(node).items():
        entries_of_one = _ENTRIES_OF_ONE.get(key, [])
        if entries_of_one and len(entries) == len(entries_of_one) and weights.ndim > 3:
            attributes[key] = [0, entries[0], 0, entries[1]] if key == "pads" else [*entries_of_one, *entries]
    inputs = [value, new.constant(weights), *([bias] if bias else [])]
    return new.copy(node, inputs, name_suffix="steady", **attributes)[0]


def _group_by_group(new: Replacement, value: str, weights: NDArray[Any], groups: int, bias: str) -> str:
    """Writes the replaced convolution with other weights, as a convolution for each group, whose outputs are joined.

    Args:
        new: Gets the nodes; its first replaced node is the convolution.
        value: The input; it has the same number of axes as the weights.
        weights: `[out, in, ...]` of all groups.
        groups: The number of groups.
        bias: The bias; empty for none.

    Returns:
        The output.
    """
    inputs = new.emit_outputs("Split", [value, new.constant([weights.shape[1]] * groups)], groups, axis=1)
    biases = [""] * groups
    if bias:
        biases = new.emit_outputs("Split", [bias, new.constant([len(weights) // groups] * groups)], groups, axis=0)
    parts = zip(inputs, np.split(weights, groups), biases, strict=True)
    outputs = [_convolved(new, part, part_weights, 1, part_bias) for part, part_weights, part_bias in parts]
    return new.emit("Concat", outputs, axis=1)


def _with_fused_nodes(new: Replacement, value: str, facts: GraphFacts) -> str:
    """Copies the nodes after a convolution that onnxruntime fuses with it, and adds them to `new.replaced`.

    Args:
        new: Gets the copies.
        value: The output of the new convolution.
        facts: What is known of the graph.

    Returns:
        The output of the last copy; `value` if nothing is fused.
    """
    while True:
        output = new.replaced[-1].output[0]
        users = facts.users(output)
        if len(users) != 1 or output in facts.outputs or not _is_fused(users[0], output):
            return value
        (value,) = new.copy(users[0], [value, *users[0].input[1:]], name_suffix="steady")
        new.replaced.append(users[0])


def _is_fused(user: NodeProto, output: str) -> bool:
    """Whether onnxruntime fuses a node with the convolution that gives `output`."""
    return user.op_type in _FUSED and user.domain in OF_ONNX and user.input[0] == output and len(user.output) == 1
