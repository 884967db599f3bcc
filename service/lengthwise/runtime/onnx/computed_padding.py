"""Whether a graph computes padding: whether a layer with much arithmetic goes through the whole rectangle of a batch.

The kernels of `recurrent_kernels` and `integer_kernels` compute valid steps only; every other product, convolution or
recurrent layer over the steps computes padding too. Operators on single elements take little beside one layer. Each
value is followed from the sequences on: does it still have an axis of steps?
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from lengthwise.runtime import integer_kernels
from lengthwise.runtime.onnx import fusion, onnx_graph
from lengthwise.runtime.onnx.onnx_graph import Graph, Node

_RECURRENT: Final = frozenset({"LSTM", "GRU"})
_DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft", fusion.DOMAIN, integer_kernels.DOMAIN})
"""Where operators are known from. Any other may be a function of the file, with layers in it."""
_POOLING: Final = "AttentionPooling"
_LAYERS: Final = re.compile(
    r"\w*(Attention|Conv|MatMul|Gemm|RNN|LSTM)(Integer\w*|NBits|Transpose)?|Einsum|If|Loop|Scan"
)
"""Operators that count, beside recurrent layers. What a loop or a branch holds is not looked at: it counts."""
_TAKING: Final = frozenset({"Gather", "GatherElements", "GatherND"})
_OF_FEATURES: Final = frozenset({2, -1})  # axes whose reduction leaves the steps


def computes_padding(graph: bytes, sequences: str, lengths: Iterable[str], *, own_kernels: bool) -> bool:
    """Whether a graph computes padding; with `own_kernels`, its LSTM and GRU run in the kernels of this project."""
    model, stepped, of_lengths = onnx_graph.read(graph), {sequences}, set(lengths)
    for node in model.nodes:
        from_lengths = not of_lengths.isdisjoint(node.inputs)
        if not stepped.isdisjoint(node.inputs):
            masks = of_lengths - stepped
            if not (own_kernels and from_lengths if node.operator in _RECURRENT else _is_small(node, masks)):
                return True
            stepped.update(_stepped_outputs(node, model, stepped, masks))
        if from_lengths:
            of_lengths.update(node.outputs)
    return False


def _is_small(node: Node, masks: set[str]) -> bool:
    """Whether a node is no layer: operators on single elements, and a sum over the valid steps by a mask."""
    if node.operator == "MatMul" and not masks.isdisjoint(node.inputs):
        return True
    return not _LAYERS.fullmatch(node.operator) and node.domain in _DOMAINS


def _stepped_outputs(node: Node, model: Graph, stepped: set[str], masks: set[str]) -> list[str]:
    """The outputs of a node that have an axis of steps; one of its inputs has."""
    if node.operator in _RECURRENT:
        return node.outputs[:1]  # behind it: the last state of each row
    if node.operator == _POOLING:
        return node.outputs[1:]  # the attention
    if node.operator in ("Shape", "Size", "MatMul"):
        return []
    second = node.inputs[1] if len(node.inputs) > 1 else ""
    if node.operator in _TAKING and second not in stepped:  # one step of each row, or one feature of each step
        kept = second not in masks and node.attributes.get("axis") in _OF_FEATURES
        return node.outputs if kept else []
    if node.operator.startswith("Reduce"):
        axes = node.attributes.get("axes") or model.constants.get(second, ())
        return node.outputs if isinstance(axes, tuple) and axes and _OF_FEATURES.issuperset(axes) else []
    return node.outputs
