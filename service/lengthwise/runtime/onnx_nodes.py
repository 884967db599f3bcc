"""Reads and writes the nodes of an ONNX file, so that some of them can be replaced; weights are copied as they are.

`onnx_graph` reads what the service must know of any file. This module reads more of each node, of the outermost graph
only, and writes the file again. Fields have the numbers of `onnx.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from lengthwise.runtime import onnx_graph
from lengthwise.runtime.onnx_graph import fields, text

AttributeValue: TypeAlias = int | float | str | tuple[float, ...]
"""A node's attribute, or the numbers of a small tensor."""

_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_FLOAT, _INT32, _INT64 = 1, 6, 7
_SMALL: Final = 8
"""Most numbers of a tensor that is read."""


@dataclass(slots=True)
class OnnxNode:
    """One node of the outermost graph.

    Attributes:
        operator: Its type.
        inputs: The names of its inputs; an empty name is an omitted input.
        outputs: The names of its outputs.
        attributes: Its attributes that are a number, a text or integers.
        unread: The names of its other attributes; a new node does not have them.
        content: The message as it was read; None if it is new.
        domain: The domain of its type.
    """

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    content: memoryview | None = None
    domain: str = ""


@dataclass(slots=True)
class OnnxModel:
    """An ONNX file, with its nodes apart.

    Attributes:
        nodes: The nodes of the outermost graph, in their order.
        constants: The numbers of small tensors, by name: initializers and outputs of Constant.
        weights: The names of all initializers.
        used_elsewhere: The names of values that something else than these nodes uses: the graph's outputs, and the
            nodes of graphs inside nodes.
    """

    nodes: list[OnnxNode]
    constants: dict[str, tuple[float, ...]]
    weights: set[str]
    used_elsewhere: set[str]
    _model: list[tuple[int, memoryview | int]]
    _graph: list[tuple[int, memoryview | int]]

    @classmethod
    def read(cls, model: bytes) -> OnnxModel:
        """Reads an ONNX file.

        Raises:
            ValueError: It is not a protocol-buffers message.
        """
        others, graph = [], []
        for number, value in fields(memoryview(model)):
            if number == _MODEL_GRAPH and isinstance(value, memoryview):
                graph += list(fields(value))
            else:
                others.append((number, value))
        read = cls([], {}, set(), set(), others, [])
        for number, value in graph:
            if number == _GRAPH_NODE and isinstance(value, memoryview):
                read._add_node(value)
                continue
            read._graph.append((number, value))
            if number == _GRAPH_INITIALIZER and isinstance(value, memoryview):
                name, numbers = _tensor(value)
                read.weights.add(name)
                if numbers is not None:
                    read.constants[name] = numbers
            elif number == _GRAPH_OUTPUT and isinstance(value, memoryview):
                names = [name for part, name in fields(value) if part == 1]
                read.used_elsewhere.update(text(name) for name in names if not isinstance(name, int))
        return read

    def users(self) -> dict[str, list[OnnxNode]]:
        """The nodes that use each value."""
        found: dict[str, list[OnnxNode]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def write(self, opsets: Mapping[str, int]) -> bytes:
        """The file with these nodes.

        Args:
            opsets: The versions of domains that the file does not name yet.
        """
        nodes = [(_GRAPH_NODE, node.content if node.content is not None else _written(node)) for node in self.nodes]
        graph = b"".join(_field(number, value) for number, value in [*self._graph, *nodes])
        imports = [(_MODEL_OPSET, _message((1, domain.encode()), (2, version))) for domain, version in opsets.items()]
        return b"".join(_field(number, value) for number, value in [*self._model, (_MODEL_GRAPH, graph), *imports])

    def _add_node(self, message: memoryview) -> None:
        node = OnnxNode("", [], [], content=message)
        for number, value in fields(message):
            if isinstance(value, int):
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
                self._add_attribute(value, node)
        self.nodes.append(node)
        if node.operator == "Constant" and node.outputs:
            for given in node.attributes.values():
                if not isinstance(given, str):
                    self.constants[node.outputs[0]] = given if isinstance(given, tuple) else (given,)

    def _add_attribute(self, message: memoryview, node: OnnxNode) -> None:
        name = ""
        value: AttributeValue | None = None
        integers: list[int] = []
        for number, content in fields(message):
            if number == 1 and isinstance(content, memoryview):
                name = text(content)
            elif number == 2 and isinstance(content, memoryview):
                value = float(struct.unpack("<f", content)[0])
            elif number == 3 and isinstance(content, int):
                value = _signed(content)
            elif number == 4 and isinstance(content, memoryview):
                value = text(content)
            elif number == 5 and isinstance(content, memoryview):
                value = _tensor(content)[1]
            elif number == 8:
                integers += _integers(content)
            elif number in (6, 11) and isinstance(content, memoryview):
                self._add_inner(content)
        if integers or value is not None:
            node.attributes[name] = tuple(integers) if integers else value  # type: ignore[assignment]
        else:
            node.unread.add(name)

    def _add_inner(self, graph: memoryview) -> None:
        """Notes what the nodes of a graph inside a node use."""
        whole = onnx_graph.Graph()
        onnx_graph.read_graph(graph, whole, set(), 0)
        self.used_elsewhere.update(name for node in whole.walk() for name in node.inputs)


def _tensor(message: memoryview) -> tuple[str, tuple[float, ...] | None]:
    """The name of a `TensorProto`, and its numbers if they are few, in it, and of a type that is known here."""
    name, kind, size = "", 0, 1
    raw: memoryview | None = None
    numbers: list[float] = []
    for number, value in fields(message):
        if number == 8 and isinstance(value, memoryview):
            name = text(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 1:
            for dimension in _integers(value):
                size *= dimension
        elif number == 9 and isinstance(value, memoryview):
            raw = value
        elif number in (5, 7):
            numbers += _integers(value) if len(numbers) <= _SMALL else []
        elif number == 4 and isinstance(value, memoryview) and len(value) <= 4 * _SMALL:
            numbers += struct.unpack(f"<{len(value) // 4}f", value)
    form = {_FLOAT: "f", _INT32: "i", _INT64: "q"}.get(kind)
    if form is None or size > _SMALL:
        return name, None
    if raw is not None and len(raw) == struct.calcsize(f"<{size}{form}"):
        return name, struct.unpack(f"<{size}{form}", raw)
    return name, tuple(numbers) if len(numbers) == size else None


def _integers(value: memoryview | int) -> list[int]:
    """A repeated integer field: one integer, or several in one piece."""
    if isinstance(value, int):
        return [_signed(value)]
    found, place = [], 0
    while place < len(value):
        each, place = onnx_graph.varint(value, place)
        found.append(_signed(each))
    return found


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _written(node: OnnxNode) -> bytes:
    """A new node as a message."""
    parts: list[tuple[int, bytes | int]] = [(1, name.encode()) for name in node.inputs]
    parts += [(2, name.encode()) for name in node.outputs]
    parts += [(4, node.operator.encode()), (7, node.domain.encode())]
    for name, value in node.attributes.items():
        if isinstance(value, str):
            parts.append((5, _message((1, name.encode()), (4, value.encode()), (20, 3))))
        elif isinstance(value, int):
            parts.append((5, _message((1, name.encode()), (3, value % 2**64), (20, 2))))
        elif isinstance(value, float):
            parts.append((5, _message((1, name.encode())) + b"\x15" + struct.pack("<f", value) + _field(20, 1)))
        else:
            whole = b"".join(_field(8, int(each) % 2**64) for each in value)
            parts.append((5, _message((1, name.encode())) + whole + _field(20, 7)))
    return _message(*parts)


def _message(*parts: tuple[int, bytes | int]) -> bytes:
    return b"".join(_field(number, value) for number, value in parts)


def _field(number: int, value: memoryview | bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([*_varint(number << 3), *_varint(value)])
    return bytes([*_varint(number << 3 | 2), *_varint(len(value))]) + value


def _varint(number: int) -> Iterator[int]:
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
