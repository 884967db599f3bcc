"""Reads and changes ONNX's protobuf messages, and makes new nodes and constants for a graph (`NodeWriter`).

A value is a name: of an input of a graph, of an initializer, or of a node's output. `writer.emit("Add", ["x", "y"])`
adds a node and returns the name of its output. The caller puts the nodes and constants into the graph.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, helper, numpy_helper

AXES_ARE_INPUTS: Final = 18  # the opset from which every reduction takes its axes as an input, and not as an attribute
OF_ONNX: Final = ("", "ai.onnx")  # the names of the domain of ONNX's own operators

IN_GRAPH: Final = "lengthwise.labels"  # the key of the labels in a graph's metadata
MADE: Final = "lengthwise.made"  # the key there of entries for the field `made` of the manifest
TRAINED: Final = "lengthwise.trained"  # the key there of what `train` records of a training
NAME_IN_GRAPH: Final = "lengthwise.name"  # the key of the model's name there


def metadata_of(proto: ModelProto, key: str) -> Any:
    """What the JSON under a key of a graph's metadata says; None if there is none."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == key), "null")
    try:
        return json.loads(text)
    except ValueError:
        return None


def labels_in(proto: ModelProto) -> tuple[str, ...] | None:
    """The labels that `export` wrote into a graph's metadata; None if it holds no list of texts as labels."""
    labels = metadata_of(proto, IN_GRAPH)
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
    """The names of all values and nodes of a graph, without those that only a graph inside a node has."""
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return names | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}


def name_of(node: NodeProto) -> str:
    """The name of a node; of a node without a name its operator type and its output, such as `Add giving y`."""
    return node.name or f"{node.op_type} giving {next(filter(None, node.output), '')}"


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


def feed_zeros(graph: GraphProto, name: str, *, like: str) -> None:
    """Makes an input of integers a value of zeros with the shape of the input `like`, in place, if there are both.

    An input that has a value of its own (an initializer) stays.
    """
    inputs = {value.name: value for value in graph.input}
    is_given = any(tensor.name == name for tensor in graph.initializer)
    if name not in inputs or like not in inputs or is_given:
        return
    kind = inputs[name].type.tensor_type.elem_type
    if kind not in (TensorProto.INT64, TensorProto.INT32):
        return
    writer = NodeWriter(all_names(graph), name)
    shape = writer.emit("Shape", [like])
    zero = helper.make_tensor("", kind, [1], [0])
    nodes = [*writer.nodes, helper.make_node("ConstantOfShape", [shape], [name], value=zero), *graph.node]
    refill(graph.node, nodes)
    graph.input.remove(inputs[name])


def refill(field: Any, items: Iterable[Any]) -> None:
    """Replaces all messages of a repeated field, such as `graph.node`, which protobuf cannot assign."""
    messages = list(items)
    del field[:]
    field.extend(messages)


def advice_for_keras(graph: ModelProto) -> str:
    """The end of an error about a graph that Keras or tf2onnx wrote: what to give instead. Empty for other graphs."""
    names = [value.name for value in graph.graph.input]
    from_keras = graph.producer_name == "tf2onnx" or any(name.startswith("keras_tensor") for name in names)
    return "; if it was exported from Keras, give the .keras file instead" if from_keras else ""


def contains_isnan(graph: ModelProto) -> bool:
    """Whether a graph has an IsNaN node, so it may handle missing values."""
    nodes = itertools.chain(graph.graph.node, *(function.node for function in graph.functions))
    return any(node.op_type == "IsNaN" for node in nodes)


class NodeWriter:
    """Collects new nodes, in order of execution, and new constants."""

    def __init__(self, names: set[str], stem: str, metadata: Iterable[StringStringEntryProto] = ()) -> None:
        """Starts without nodes and constants.

        Args:
            names: The names of all values and nodes of the graph, which new names must differ from; these are added.
            stem: What each new name begins with.
            metadata: The metadata of each new node, such as its line of code.
        """
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names, self._stem, self._metadata = names, stem, tuple(metadata)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # names, by element type, shape and bytes

    def name(self, stem: str) -> str:
        """Reserves a new name for a value or a node: `stem`, followed by a number if that name is used already."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node of the operator `kind` with one output, and returns the output's name."""
        return self.emit_outputs(kind, inputs, 1, **attributes)[0]

    def emit_outputs(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node of the operator `kind` with `count` outputs, and returns their names."""
        names = [self.name(f"{self._stem}{kind.lower()}") for _ in range(count)]
        node = helper.make_node(kind, list(inputs), names, name=self.name(f"{names[0]}_node"), **attributes)
        node.metadata_props.extend(self._metadata)
        self.nodes.append(node)
        return names

    def copy(
        self,
        node: NodeProto,
        inputs: Sequence[str],
        *,
        drop: Iterable[str] = (),
        name_suffix: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Adds a copy of a node with other inputs and attributes, and returns the names of the copy's outputs.

        Args:
            node: The node, which stays as it is.
            inputs: The inputs of the copy; empty ones at the end are left out.
            drop: The names of attributes that the copy does not get.
            name_suffix: What is added to the names of the copy and of its outputs. Without it the names are those of
                the node, which the copy is to replace.
            **attributes: The attributes of the copy that the node does not have, or with other values.
        """
        copied = deepcopy(node)
        count = max((index for index, name in enumerate(inputs, start=1) if name), default=0)
        copied.input[:] = inputs[:count]
        kept_attributes = [attribute for attribute in copied.attribute if attribute.name not in {*attributes, *drop}]
        refill(
            copied.attribute,
            [*kept_attributes, *(helper.make_attribute(name, value) for name, value in attributes.items())],
        )
        if name_suffix:
            copied.output[:] = [self.name(f"{name}_{name_suffix}") if name else "" for name in copied.output]
            copied.name = self.name(f"{copied.name}_{name_suffix}")
        self.nodes.append(copied)
        return list(copied.output)

    def constant(self, array: NDArray[Any] | np.generic | Sequence[int] | float, dtype: Any = None) -> str:
        """The name of a constant with these numbers, which is added unless there is an equal one.

        Its shape is that of the numbers. Its element type is `dtype`; by default int64 for integers, else NumPy's.
        """
        tensor = np.asarray(array, dtype=dtype)
        if dtype is None and np.issubdtype(tensor.dtype, np.integer):
            tensor = tensor.astype(np.int64)
        key = (str(tensor.dtype), tensor.shape, tensor.tobytes())
        if key not in self._constants:
            name = self.name(f"{self._stem}constant")
            self.constants.append(numpy_helper.from_array(np.array(tensor, order="C"), name))
            self._constants[key] = name
        return self._constants[key]

    def unsqueezed(self, name: str, axes: Sequence[int]) -> str:
        """The name of the tensor with axes of size 1 inserted, which are these axes of the result."""
        return self.emit("Unsqueeze", [name, self.constant(list(axes))]) if axes else name

    def squeezed(self, name: str, axes: Sequence[int]) -> str:
        """The name of the tensor without these axes, which have size 1."""
        return self.emit("Squeeze", [name, self.constant(list(axes))]) if axes else name

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """The name of the tensor with its axes in this order."""
        return name if list(order) == sorted(order) else self.emit("Transpose", [name], perm=list(order))
