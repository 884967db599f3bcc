"""Reads graphs of `onnx` for the service's matcher of patterns: for rules that look for several connected nodes."""

from __future__ import annotations

import math
from typing import Final

from onnx import GraphProto, ModelProto

from lengthwise.exporter_api.graphs import Node, NotFound, Pattern, onnx_graph, require

__all__ = ["Node", "NotFound", "Pattern", "pattern_of", "require", "source_of_copy"]

_SMALL: Final = 8  # numbers: a pattern sees the values of constants up to this size


def pattern_of(graph: GraphProto) -> Pattern:
    """Reads the nodes and the small constants of a graph, which may be the body of a loop."""
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _SMALL]
    copied = GraphProto(node=graph.node, initializer=small, output=graph.output)
    return Pattern(onnx_graph.read(ModelProto(graph=copied).SerializeToString()))


def source_of_copy(pattern: Pattern, name: str, *operators: str) -> str:
    """The name of the value that `name` is a copy of, made by any number of nodes of these operators."""
    maker = pattern.makers.get(name)
    if maker is None or maker.operator not in operators:
        return name
    return source_of_copy(pattern, maker.inputs[0], *operators)
