"""Reads what the service must know of an ONNX file before it runs it: its nodes, and the files with its weights.

The service does not have the package `onnx`. An ONNX file is a protocol-buffers message; this module reads the few
fields that are needed, by their numbers in `onnx.proto`, and skips the weights. Fields may be in any order, and a
message that occurs twice has the fields of both, as in protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_MOST_NESTED: Final = 64
"""Most graphs inside each other. onnxruntime's own reader allows 100 nested messages."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class Node:
    """One operator.

    Attributes:
        operator: Its type.
        domain: The domain of its type; empty for ONNX's own.
        inputs: The names of its inputs; an empty name is an omitted input.
        outputs: The names of its outputs.
        graphs: The graphs inside it: branches, or the body of a loop.
    """

    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """Nodes, in an order in which they can run.

    Attributes:
        nodes: The nodes.
        functions: The model's functions, which nodes may call by name; in the outermost graph only.
        locations: The files with weights, as the graph names them; in the outermost graph only.
    """

    nodes: list[Node] = field(default_factory=list)
    functions: list[Graph] = field(default_factory=list)
    locations: set[str] = field(default_factory=set)

    def walk(self) -> Iterator[Node]:
        """Every node, including those of functions and of the graphs inside nodes."""
        for node in self.nodes:
            yield node
            for inner in node.graphs:
                yield from inner.walk()
        for function in self.functions:
            yield from function.walk()


def read(model: bytes) -> Graph:
    """Reads an ONNX file (`ModelProto`).

    Raises:
        ValueError: The bytes are not a protocol-buffers message, or are nested too deeply.
    """
    graph = Graph()
    for number, value in fields(memoryview(model)):
        if number == 7 and isinstance(value, memoryview):
            read_graph(value, graph, graph.locations, 0)
        elif number == 25 and isinstance(value, memoryview):
            function = Graph()
            _read_function(value, function, graph.locations)
            graph.functions.append(function)
        elif number == 20 and isinstance(value, memoryview):  # training graphs never run, but their files count
            for part, inner in fields(value):
                if part in (1, 2) and isinstance(inner, memoryview):
                    read_graph(inner, Graph(), graph.locations, 1)
    return graph


def read_graph(message: memoryview, graph: Graph, locations: set[str], depth: int) -> None:
    """Adds a `GraphProto` to a graph."""
    if depth > _MOST_NESTED:
        raise ValueError(f"graphs are nested more than {_MOST_NESTED} deep")
    for number, value in fields(message):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            graph.nodes.append(_node(value, locations, depth))
        elif number == 5:
            _read_tensor(value, locations)
        elif number == 15:
            _read_sparse(value, locations)


def _read_function(message: memoryview, function: Graph, locations: set[str]) -> None:
    """Adds a `FunctionProto` to a graph."""
    for number, value in fields(message):
        if number == 7 and isinstance(value, memoryview):
            function.nodes.append(_node(value, locations, 0))
        elif number == 11 and isinstance(value, memoryview):
            _read_attribute(value, Node(), locations, 0)


def _node(message: memoryview, locations: set[str], depth: int) -> Node:
    """A `NodeProto`."""
    node = Node()
    for number, value in fields(message):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node.inputs.append(text(value))
        elif number == 2:
            node.outputs.append(text(value))
        elif number == 4:
            node.operator = text(value)
        elif number == 7:
            node.domain = text(value)
        elif number == 5:
            _read_attribute(value, node, locations, depth)
    return node


def _read_attribute(message: memoryview, node: Node, locations: set[str], depth: int) -> None:
    """Adds the graphs of an `AttributeProto` to its node, and the files of its tensors to `locations`."""
    one: Graph | None = None
    for number, value in fields(message):
        if not isinstance(value, memoryview):
            continue
        if number in (5, 10):
            _read_tensor(value, locations)
        elif number in (22, 23):
            _read_sparse(value, locations)
        elif number == 6:
            if one is None:  # a message that occurs twice counts as one
                one = Graph()
                node.graphs.append(one)
            read_graph(value, one, locations, depth + 1)
        elif number == 11:
            several = Graph()
            node.graphs.append(several)
            read_graph(value, several, locations, depth + 1)


def _read_sparse(message: memoryview, locations: set[str]) -> None:
    """Adds the files of a `SparseTensorProto`."""
    for number, value in fields(message):
        if number in (1, 2) and isinstance(value, memoryview):
            _read_tensor(value, locations)


def _read_tensor(message: memoryview, locations: set[str]) -> None:
    """Adds the files of a `TensorProto`: its external data entries with the key `location`."""
    for number, value in fields(message):
        if number == 13 and isinstance(value, memoryview):
            entry: dict[int, list[bytes]] = {1: [], 2: []}
            for part, content in fields(value):
                if part in entry and isinstance(content, memoryview):
                    entry[part].append(bytes(content))
            if b"location" in entry[1]:
                locations.update(content.decode(errors="replace") for content in entry[2])


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message, each as its number and its content: bytes, or an integer.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    place, end = 0, len(message)
    while place < end:
        tag, place = varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = varint(message, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = varint(message, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is no message of protocol buffers that ONNX knows")
        if size > end - place:
            raise ValueError("it is cut off")
        yield number, message[place : place + size]
        place += size


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """The varint at a position, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it is cut off")
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("it has a number of more than ten bytes")


def text(value: memoryview) -> str:
    """The content of a field as text."""
    return bytes(value).decode(errors="replace")
