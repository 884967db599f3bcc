"""Sums and means, whose order of addition depends on the sizes of the other axes.

onnxruntime's ReduceSum and ReduceMean add in another order at another width, and for one row of a few features. A
product with ones adds the same numbers. The order of a product of two or more rows depends only on the number of its
columns; a product of one row is computed by another kernel, which depends on the width modulo four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from lengthwise_export.steady_bits.graph_facts import GraphFacts, MeasuredAxis
from lengthwise_export.steady_bits.replacement import LANES, Replacement

_SHAPE_OF_ONE_AXIS: Final = 15  # the first opset in which Shape can return a single axis
_FEW: Final = 8  # A sum of fewer numbers over an axis before the last was in the same order in every batch


def rewritten_sum(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """A ReduceSum over the steps or over fixed axes, or a ReduceMean over fixed axes, as products with ones."""
    value, axes = node.inputs[0], facts.axes(node.inputs[0])
    over = None if axes is None else _reduced_axes(node, facts, len(axes))
    if value is None or axes is None or not over:
        return None
    open_axes = [axis for axis in over if not axes[axis].fixed]
    if len(open_axes) > 1 or (open_axes and node.op_type == "ReduceMean"):
        return None  # a mean over the width is of the padding too, whatever its bits
    if not open_axes and not every and not _may_lose_bits(axes, over):
        return None
    new, rest = Replacement(node), list(axes)
    for axis in sorted(over, reverse=True):
        if axis in open_axes:
            value = _over_steps(new, value, rest, axis, facts.opset)
        else:
            value = _over_fixed(new, value, rest, axis)
        del rest[axis]
    if node.op_type == "ReduceMean":
        count = math.prod(axes[axis].size for axis in over)
        value = new.add("Div", value, new.constant(np.array(count, dtype=np.float32)))
    if node.attributes.get_int("keepdims", 1):
        value = new.add("Unsqueeze", value, new.constant(sorted(over)))
    return new.gives(value)


def _reduced_axes(node: ir.Node, facts: GraphFacts, rank: int) -> list[int] | None:
    """The axes that a reduction is over, not negative; None if they are not constant."""
    axes: list[int] = []
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = facts.constant(node.inputs[1])
        if constant is None:
            return None
        axes = constant.ravel().tolist()
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return None
    return sorted({axis % rank for axis in axes or range(rank)})


def _may_lose_bits(axes: Sequence[MeasuredAxis], over: Sequence[int]) -> bool:
    """Whether a sum over fixed axes was in another order for one row, at such sizes."""
    before = math.prod(axis.size for axis in axes[: over[0]])
    count = math.prod(axes[axis].size for axis in over)
    if over[-1] == len(axes) - 1:
        return before % LANES != 0 and count >= LANES
    return before == 1 and count >= _FEW


def _over_steps(new: Replacement, value: ir.Value, axes: Sequence[MeasuredAxis], axis: int, opset: int) -> ir.Value:
    """A sum over an axis of dynamic size, as `[2, steps] x [.., steps, columns]`, of which one row is kept."""
    behind = axes[axis + 1 :]
    if len(behind) > 1 and all(each.fixed for each in behind):
        # One axis of columns needs no transposition.
        merged = (*axes[: axis + 1], MeasuredAxis(math.prod(each.size for each in behind), fixed=True))
        flat = new.add("Reshape", value, new.constant([*[0] * (axis + 1), merged[-1].size]))
        total = _over_steps(new, flat, merged, axis, opset)
        return new.add("Reshape", total, new.constant([*[0] * axis, *(each.size for each in behind)]))
    if opset >= _SHAPE_OF_ONE_AXIS:
        size = new.add("Shape", value, start=axis, end=axis + 1)
    else:
        size = new.add("Slice", new.add("Shape", value), new.constant([axis]), new.constant([axis + 1]))
    shape = new.add("Concat", new.constant([2]), size, axis=0)
    ones = new.add("ConstantOfShape", shape, value=ir.tensor(np.ones(1, dtype=np.float32)))
    others = [place for place in range(len(axes)) if place != axis]
    columns = max((place for place in others if axes[place].fixed), default=None)
    if columns is None:
        # The columns must not be the rows of the batch: how a product adds depends on their number.
        value = new.add("Unsqueeze", value, new.constant([len(axes)]))
        order = [*others, axis, len(axes)]
    else:
        order = [*(place for place in others if place != columns), axis, columns]
    if order != sorted(order):
        value = new.add("Transpose", value, perm=order)
    product = new.add("MatMul", ones, value)
    total = new.add("Gather", product, new.constant(np.array(0, dtype=np.int64)), axis=len(order) - 2)
    if columns is None:
        return new.add("Squeeze", total, new.constant([len(others)]))
    kept = [place for place in order if place != axis]
    return total if kept == others else new.add("Transpose", total, perm=[kept.index(place) for place in others])


def _over_fixed(new: Replacement, value: ir.Value, axes: Sequence[MeasuredAxis], axis: int) -> ir.Value:
    """A sum over an axis of fixed size, as a product with a constant column of ones."""
    others = [place for place in range(len(axes)) if place != axis]
    if axis != len(axes) - 1:
        value = new.add("Transpose", value, perm=[*others, axis])
    ones = new.constant(np.ones((axes[axis].size, 1), dtype=np.float32))
    return new.add("Squeeze", new.add("MatMul", value, ones), new.constant([len(others)]))
