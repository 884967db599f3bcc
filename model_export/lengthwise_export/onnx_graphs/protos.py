"""What several rooms read of ONNX's messages: labels, attributes, constants, and what nodes use."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

AXES_ARE_INPUTS: Final = 18  # the opset from which every reduction takes its axes as an input, and not as an attribute
OF_ONNX: Final = ("", "ai.onnx")  # the names of the domain of ONNX's own operators

IN_GRAPH: Final = "lengthwise.labels"  # the key of the labels in a graph's metadata
NAME_IN_GRAPH: Final = "lengthwise.name"  # the key of the model's name there


def labels_in(proto: onnx.ModelProto) -> tuple[str, ...] | None:
    """The labels that `export` wrote into a graph; None if there are none."""
    for entry in proto.metadata_props:
        if entry.key == IN_GRAPH:
            try:
                labels = json.loads(entry.value)
            except ValueError:
                return None
            if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
                return tuple(labels)
    return None


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators; 0 if the model does not say it."""
    return next((each.version for each in model.opset_import if each.domain in OF_ONNX), 0)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node, by name; bytes as text."""
    values = ((each.name, helper.get_attribute_value(each)) for each in node.attribute)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """All constants by name: initializers, and the outputs of Constant nodes."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node: branches, or the body of a loop."""
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def names_in(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The names that nodes use, and those that the graphs inside them use."""
    for node in nodes:
        yield from node.input
        for inner in graphs_in(node):
            yield from names_in(inner.node)
            yield from (value.name for value in inner.output)


def reaching(graph: GraphProto, outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that these values depend on, in the order of the graph."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_in([node]))
    return nodes[::-1]


def keep_needed(graph: GraphProto) -> None:
    """Removes the nodes and the initializers that no output of a graph depends on."""
    outputs = [value.name for value in graph.output]
    nodes = reaching(graph, outputs)
    needed = {*outputs, *names_in(nodes)}
    refill(graph.node, nodes)
    refill(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in needed))


def refill(field: Any, items: Iterable[Any]) -> None:
    """Replaces the messages of a repeated field."""
    messages = list(items)
    del field[:]
    field.extend(messages)


def keras_cure(graph: onnx.ModelProto) -> str:
    """The end of an error about a graph that Keras or tf2onnx wrote; empty for the graphs of others."""
    names = [value.name for value in graph.graph.input]
    from_keras = graph.producer_name == "tf2onnx" or any(name.startswith("keras_tensor") for name in names)
    return "; if it was exported from Keras, give the .keras file instead" if from_keras else ""


def contains_isnan(graph: onnx.ModelProto) -> bool:
    """Whether a graph has an IsNaN node, so it may handle missing values."""
    nodes = itertools.chain(graph.graph.node, *(function.node for function in graph.functions))
    return any(node.op_type == "IsNaN" for node in nodes)
