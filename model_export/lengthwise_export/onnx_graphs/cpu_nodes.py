"""Which nodes of a graph compute nothing but shapes and lengths: on a device these alone may run on the CPU.

onnxruntime leaves such nodes on the CPU on purpose, whatever the provider: the numbers are there, and few. The manifest
lists them, and a service on a device refuses a graph of which any other node is not on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
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
"""What makes no more numbers than it is given: a mask, which has one for each step, is none of this."""
_MOST_CONSTANT: Final = 64
"""Numbers of a constant beside which something else is looked up or computed: not a table of weights."""


def host_nodes(graph: onnx.ModelProto, lengths: str | None) -> tuple[str, ...]:
    """Their names, in the graph's order.

    Args:
        graph: The graph; nodes of its subgraphs are none of these.
        lengths: The input that holds the lengths, where it has one.
    """
    constant = {tensor.name for tensor in graph.graph.initializer if prod(tensor.dims) <= _MOST_CONSTANT}
    few = set() if lengths is None else {lengths}
    names = []
    for node in graph.graph.node:
        given = {name for name in node.input if name}
        if node.op_type == "Constant":
            constant |= set(_small(node))
        elif node.op_type in _OF_FEW_NUMBERS and given <= constant:
            constant |= set(node.output)  # onnxruntime computes it once, before it places anything
        elif node.domain in ("", "ai.onnx") and (
            node.op_type in _FROM_A_SHAPE or (node.op_type in _OF_FEW_NUMBERS and given <= few | constant)
        ):
            few |= set(node.output)
            if node.name:
                names.append(node.name)
    return tuple(names)


def _small(node: onnx.NodeProto) -> Iterator[str]:
    """The output of a constant of few numbers."""
    for attribute in node.attribute:
        if attribute.name != "value" or prod(attribute.t.dims) <= _MOST_CONSTANT:
            yield from node.output
