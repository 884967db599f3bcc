"""Finds the nodes that compute only shapes and lengths. On a GPU, only these may run on the CPU.

onnxruntime places such nodes on the CPU with every provider, because their few numbers are there. The manifest lists
them as `host_nodes`. A service on a device rejects a graph if any other node is placed on the CPU.
"""

from __future__ import annotations

from math import prod
from typing import Final

import onnx

_FROM_A_SHAPE: Final = frozenset({"Shape", "Size"})
_OF_FEW_NUMBERS: Final = frozenset(
    {
        *("Cast", "Gather", "Squeeze", "Unsqueeze", "Slice", "Concat", "Reshape", "Identity"),
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Floor", "Ceil"),
        *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Where"),
    }
)
"""Operators whose outputs are not larger than their inputs, so their results stay small."""
_MAX_CONSTANT: Final = 64  # A constant with more numbers is a table of weights


def host_nodes(graph: onnx.ModelProto, lengths: str | None) -> tuple[str, ...]:
    """The names of the outermost nodes that compute only shapes and lengths, in the order of the graph."""
    constant = {tensor.name for tensor in graph.graph.initializer if prod(tensor.dims) <= _MAX_CONSTANT}
    few = set() if lengths is None else {lengths}
    names = []
    for node in graph.graph.node:
        given = {name for name in node.input if name}
        if node.op_type == "Constant":
            if any(each.name != "value" or prod(each.t.dims) <= _MAX_CONSTANT for each in node.attribute):
                constant |= set(node.output)
        elif node.op_type in _OF_FEW_NUMBERS and given <= constant:
            constant |= set(node.output)  # onnxruntime folds it into a constant before it places nodes
        elif node.domain in ("", "ai.onnx") and (
            node.op_type in _FROM_A_SHAPE or (node.op_type in _OF_FEW_NUMBERS and given <= few | constant)
        ):
            few |= set(node.output)
            if node.name:
                names.append(node.name)
    return tuple(names)
