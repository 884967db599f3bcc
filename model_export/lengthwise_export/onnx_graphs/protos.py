"""Reads and changes ONNX's protobuf messages: labels, attributes, constants, and which values nodes use.

A value is a name: of an input of a graph, of an initializer, or of a node's output.
"""

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
    """The labels that `export` wrote into a graph's metadata; None if it holds no list of texts as labels."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == IN_GRAPH), "null")
    try:
        labels = json.loads(text)
    except ValueError:
        return None
    is_list_of_texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return tuple(labels) if is_list_of_texts else None


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 if the model does not say it."""
    return next((entry.version for entry in model.opset_import if entry.domain in OF_ONNX), 0)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The values of a node's attributes, by name; bytes as text."""
    values = ((attribute.name, helper.get_attribute_value(attribute)) for attribute in node.attribute)
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """All constants of a graph as tensors, by name: initializers, and the outputs of Constant nodes."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    """Yields the graphs in a node's attributes: the branches of an If, or the body of a loop.

    The graph of an attribute of another type is empty.
    """
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def names_in(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yields the names of the values that nodes use, and that the graphs inside them use; some more than once."""
    for node in nodes:
        yield from node.input
        for inner in graphs_in(node):
            yield from names_in(inner.node)
            yield from (value.name for value in inner.output)


def all_names(graph: GraphProto) -> set[str]:
    """The names of all values and nodes of a graph; those inside of its nodes only as far as its nodes take them."""
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return names | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}


def name_of(node: NodeProto) -> str:
    """The name of a node; of a node without a name its operator type and its output, such as `Add giving y`."""
    return node.name or f"{node.op_type} giving {node.output[0]}"


def nodes_before(graph: GraphProto, outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes of a graph that these values depend on, in the order of the graph."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_in([node]))
    return nodes[::-1]


def keep_needed(graph: GraphProto) -> None:
    """Removes the nodes and the initializers that no output of a graph depends on, in place."""
    outputs = [value.name for value in graph.output]
    nodes = nodes_before(graph, outputs)
    needed = {*outputs, *names_in(nodes)}
    refill(graph.node, nodes)
    refill(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in needed))


def refill(field: Any, items: Iterable[Any]) -> None:
    """Replaces all messages of a repeated field, such as `graph.node`, which protobuf cannot assign."""
    messages = list(items)
    del field[:]
    field.extend(messages)


def advice_for_keras(graph: onnx.ModelProto) -> str:
    """The end of an error about a graph that Keras or tf2onnx wrote: what to give instead. Empty for other graphs."""
    names = [value.name for value in graph.graph.input]
    from_keras = graph.producer_name == "tf2onnx" or any(name.startswith("keras_tensor") for name in names)
    return "; if it was exported from Keras, give the .keras file instead" if from_keras else ""


def contains_isnan(graph: onnx.ModelProto) -> bool:
    """Whether a graph has an IsNaN node, so it may handle missing values."""
    nodes = itertools.chain(graph.graph.node, *(function.node for function in graph.functions))
    return any(node.op_type == "IsNaN" for node in nodes)
