"""Functions of single numbers whose last digits depend on the number's place.

onnxruntime computes these functions for several numbers at once, and the last few numbers of a tensor one by one, with
another rounding. Which numbers are the last few depends on how many rows and steps the batch has.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from lengthwise_export.steady_bits.graph_facts import GraphFacts
from lengthwise_export.steady_bits.replacement import LANES, MOST_LANES, Replacement


def rewritten_function(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """Log, Softplus and Mish through ReduceLogSum; other functions over a tensor that ends in numbers of no use."""
    (value,), axes = node.inputs, facts.axes(node.inputs[0])
    if value is None or axes is None or all(axis.fixed for axis in axes):
        return None
    if not every and math.prod(axis.size for axis in axes) % LANES == 0:
        return None
    new = Replacement(node)
    if node.op_type == "Log":
        return new.gives(_log(new, value, len(axes), facts.opset))
    if node.op_type in ("Softplus", "Mish"):
        softplus = _softplus(new, value, len(axes), facts.opset)
        mish = node.op_type == "Mish"
        return new.gives(new.add("Mul", value, new.add("Tanh", softplus)) if mish else softplus)
    return new.gives(_with_more_numbers(new, node.op_type, value))


def _log(new: Replacement, value: ir.Value, rank: int, opset: int) -> ir.Value:
    """The logarithm of a sum of one number, which is computed number by number."""
    return new.reduced("ReduceLogSum", new.add("Unsqueeze", value, new.constant([rank])), rank, opset)


def _softplus(new: Replacement, value: ir.Value, rank: int, opset: int) -> ir.Value:
    """`log(1 + exp(x))` as `max(x, 0) + log(1 + exp(-|x|))`, which cannot overflow."""
    smaller = new.add("Exp", new.add("Neg", new.add("Abs", value)))
    one = new.constant(np.array(1, dtype=np.float32))
    return new.add("Add", new.add("Relu", value), _log(new, new.add("Add", smaller, one), rank, opset))


def _with_more_numbers(new: Replacement, operator: str, value: ir.Value) -> ir.Value:
    """Appends `MOST_LANES - 1` ones, so that no number of the tensor falls into the kernel's scalar tail."""
    more = np.ones(MOST_LANES - 1, dtype=np.float32)
    flat = new.add("Reshape", value, new.constant([-1]))
    longer = new.add(operator, new.add("Concat", flat, new.constant(more), axis=0))
    ends = (new.constant([0]), new.constant([-len(more)]))
    return new.add("Reshape", new.add("Slice", longer, *ends), new.add("Shape", value))
