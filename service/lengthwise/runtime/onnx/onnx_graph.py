"""An ONNX file as nodes and tensors, read and written without the package `onnx`, which the service does not have.

What the service must know of a file before it runs it is read here: its nodes, those inside branches, loops and
functions too, and the files with its weights. Nodes of the outermost graph can be replaced, and the file written again.
Weights are neither read nor copied, unless they are asked for.

An ONNX file is a *message* of protocol buffers: a sequence of *fields*, each a number and a content. A content is an
integer (a *varint*) or bytes: a text, a packed list, or another message. `onnx.proto` says which number means what:
`_NODE_INPUT` is field 1 of a `NodeProto`.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Content: TypeAlias = memoryview | bytes | int
"""The content of a field: a text, a number of four or eight bytes or a message; or an integer."""
Pieces: TypeAlias = list[memoryview | bytes]
"""A message that is encoded, in pieces: weights are copied once, when the pieces of the whole file are joined."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED32: 4, _FIXED64: 8}


def fields(message: memoryview) -> list[tuple[int, memoryview | int]]:
    """Returns the fields of a message, each as its number and its content.

    Raises:
        ValueError: The bytes are not a valid message.
    """
    contents: list[tuple[int, memoryview | int]] = []
    offset, end = 0, len(message)
    while offset < end:
        # Nearly every tag and size has one byte: it is read here, as calls are most of what reading takes.
        tag, offset = (message[offset], offset + 1) if message[offset] < 0x80 else varint(message, offset)
        number, kind = tag >> 3, tag & 7
        if kind not in (_VARINT, _BYTES, *_SIZES):
            raise ValueError("it is no message of protocol buffers that ONNX knows")
        size = _SIZES.get(kind)
        if size is None:
            is_short = offset < end and message[offset] < 0x80
            size, offset = (message[offset], offset + 1) if is_short else varint(message, offset)
        if kind == _VARINT:
            contents.append((number, size))
            continue
        if size > end - offset:
            raise ValueError("it is cut off")
        contents.append((number, message[offset : offset + size]))
        offset += size
    return contents


def varint(message: memoryview | bytes, offset: int) -> tuple[int, int]:
    """Reads the varint at an offset of a message; returns it, and the offset after it.

    A varint has seven bits in each byte, the lowest first; the top bit of a byte says that another byte follows.

    Raises:
        ValueError: The message ends before the varint does, or it is too long.
    """
    number = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            raise ValueError("it is cut off")
        byte = message[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
    raise ValueError("it has a number of more than ten bytes")


def signed(value: int) -> int:
    """The int64 that a varint stands for: numbers from 2**63 on are negative ones."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def integers(value: memoryview | int) -> list[int]:
    """Returns the numbers of a repeated int64 field, whose content is one integer or a packed list of varints."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, offset = [], 0
    while offset < len(value):
        number, offset = varint(value, offset)
        numbers.append(signed(number))
    return numbers


class Message:
    """A message of protocol buffers: the contents of its fields by their numbers, each in the order of the message."""

    def __init__(self, message: memoryview) -> None:
        self._contents: dict[int, list[memoryview | int]] = defaultdict(list)
        self.messages: dict[int, list[memoryview]] = defaultdict(list)  # those that are bytes, such as messages
        for number, content in fields(message):
            self._contents[number].append(content)
            if isinstance(content, memoryview):
                self.messages[number].append(content)

    def texts(self, number: int) -> list[str]:
        """Returns the contents of a repeated field of texts."""
        return [str(content, errors="replace") for content in self.messages[number]]

    def text(self, number: int) -> str:
        """Returns the content of a single text field, of several the last; empty if there is none."""
        contents = self.messages[number]
        return str(contents[-1], errors="replace") if contents else ""

    def integers(self, number: int, *, repeated: bool = True) -> list[int]:
        """Returns the numbers of an int64 field, each of whose contents is one integer or a packed list.

        Where the field is not `repeated`, a packed list is not read, as protocol buffers do.
        """
        numbers: list[int] = []
        for content in self._contents[number]:
            if repeated or isinstance(content, int):
                numbers += integers(content)
        return numbers

    def without(self, number: int) -> list[tuple[int, Content]]:
        """Returns all fields except those with this number, each as its number and its content."""
        return [
            (other, content) for other, contents in self._contents.items() for content in contents if other != number
        ]


def encode(content: Iterable[tuple[int, Content | Pieces]]) -> bytes:
    """Encodes fields, each a number and a content, as a message."""
    return b"".join(_pieces(content))


def _pieces(content: Iterable[tuple[int, Content | Pieces]]) -> Pieces:
    """Encodes fields, each a number and a content, as the pieces of a message."""
    pieces: Pieces = []
    for number, value in content:
        if isinstance(value, int):
            pieces.append(_varint(number << 3 | _VARINT) + _varint(value % 2**64))
        else:
            parts = value if isinstance(value, list) else [value]
            pieces += [_varint(number << 3 | _BYTES) + _varint(sum(map(len, parts))), *parts]
    return pieces


def _varint(number: int) -> bytes:
    """Encodes a number from 0 as a varint: seven bits in each byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


FLOAT, INT8, INT32, INT64, BOOL = 1, 3, 6, 7, 9
"""Types of tensors that are read, as `TensorProto.DataType` numbers them."""
AttributeValue: TypeAlias = int | float | str | tuple[float, ...]
"""A node's attribute, or the numbers of a small tensor."""

_MOST_NESTED: Final = 64  # most graphs inside each other. onnxruntime's own reader allows 100 nested messages
_SMALL: Final = 8  # most numbers of a tensor that is a constant, and of one whose numbers are not raw data
_TYPES: Final[dict[int, np.dtype[Any]]] = {
    **{FLOAT: np.dtype("<f4"), INT8: np.dtype("i1"), INT32: np.dtype("<i4"), INT64: np.dtype("<i8")},
    BOOL: np.dtype("?"),
}
# Numbers of fields in `onnx.proto`, by message
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 8, 14, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_VALUE_NAME: Final = 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT, _ATTRIBUTE_TENSOR = 1, 2, 3, 4, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_INTS, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 6, 8, 10, 11
_ATTRIBUTE_TYPE, _ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 20, 22, 23
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_INT32S, _TENSOR_INT64S = 1, 2, 4, 5, 7
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 8, 9, 13
# Where tensors, which may have their numbers in another file, stand in a file: the messages inside each, by field
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {_MODEL_GRAPH: "graph", _MODEL_TRAINING: "training", _MODEL_FUNCTION: "function"},
    "training": {1: "graph", 2: "graph"},  # it never runs, but its files count
    "function": {_FUNCTION_NODE: "node", _FUNCTION_ATTRIBUTE: "attribute"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_TENSOR: "tensor", _GRAPH_SPARSE: "sparse tensor"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        **dict.fromkeys((_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS), "tensor"),
        **dict.fromkeys((_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES), "sparse tensor"),
        **dict.fromkeys((_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS), "graph"),
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},  # its values and its indices
    "tensor": {_TENSOR_EXTERNAL: "entry of external data"},
}


@dataclass(slots=True)
class Tensor:
    """A `TensorProto`; its numbers are read from the message when they are asked for."""

    kind: int  # The type of its numbers, such as `FLOAT`
    shape: tuple[int, ...]
    content: memoryview  # The message

    def numbers(self) -> NDArray[Any] | None:
        """Reads the numbers, in the shape of the tensor.

        A tensor has its numbers either as raw data or, one by one, in a field for their type. None if they cannot be
        read here: if they are in another file; if their type is not in `_TYPES`; or if there are more than `_SMALL`,
        and not as raw data.
        """
        kind, size = _TYPES.get(self.kind), math.prod(self.shape)
        if kind is None or min(self.shape, default=0) < 0:
            return None
        listed: list[Any] = []  # those from a field for their type
        for number, value in fields(self.content):
            if number == _TENSOR_RAW and isinstance(value, memoryview) and len(value) == size * kind.itemsize:
                return np.frombuffer(bytes(value), kind).reshape(self.shape)
            if len(listed) > size or size > _SMALL:
                continue
            if number in (_TENSOR_INT32S, _TENSOR_INT64S):
                listed += integers(value)
            elif number == _TENSOR_FLOATS and isinstance(value, memoryview):
                listed += struct.unpack(f"<{len(value) // 4}f", value[: len(value) // 4 * 4])
        return np.array(listed).astype(kind).reshape(self.shape) if len(listed) == size else None

    def constant(self) -> tuple[float, ...] | None:
        """The numbers of a small tensor, flat; None if they are more than `_SMALL`, int8, or cannot be read."""
        numbers = self.numbers() if self.kind != INT8 and math.prod(self.shape) <= _SMALL else None
        return None if numbers is None else tuple(numbers.ravel().tolist())


@dataclass(slots=True)
class Node:
    """One operator."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)  # The names of its inputs; an empty name is an omitted input
    outputs: list[str] = field(default_factory=list)
    # Its attributes that are a number, a text, integers or a small tensor
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)  # The names of its other attributes; a new node does not have them
    graphs: list[Graph] = field(default_factory=list)  # The graphs inside it: branches, or the body of a loop
    content: memoryview | None = None  # The message as it was read; None if it is new
    domain: str = ""  # The domain of its type; empty for ONNX's own
    name: str = ""  # Its name, which nothing but messages and profiles show


@dataclass
class Graph:
    """Nodes, in an order in which they can run."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)  # The initializers, by name
    outputs: list[str] = field(default_factory=list)
    # The model's functions, which nodes may call by name; in the outermost graph only
    functions: list[Graph] = field(default_factory=list)
    _graph_fields: list[tuple[int, Content]] = field(default_factory=list)  # The fields of its message but the nodes
    _model_fields: list[tuple[int, Content]] = field(default_factory=list)  # Those of the file but the graph

    def walk(self) -> Iterator[Node]:
        """Yields every node, including those of functions and of the graphs inside nodes."""
        for node in self.nodes:
            yield node
            for inner in node.graphs:
                yield from inner.walk()
        for function in self.functions:
            yield from function.walk()

    @cached_property
    def constants(self) -> dict[str, tuple[float, ...]]:
        """The numbers of small constants (initializers, and outputs of Constant), as flat tuples by name."""
        constants = {
            name: numbers for name, tensor in self.tensors.items() if (numbers := tensor.constant()) is not None
        }
        for node in self.nodes:
            if node.operator == "Constant" and node.outputs:
                for value in node.attributes.values():
                    if not isinstance(value, str):
                        constants[node.outputs[0]] = value if isinstance(value, tuple) else (value,)
        return constants

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file, texts by key."""
        entries = (content for number, content in self._model_fields if number == _MODEL_METADATA)
        messages = [Message(content) for content in entries if isinstance(content, memoryview)]
        return {message.text(1): message.text(2) for message in messages}

    @cached_property
    def used_elsewhere(self) -> set[str]:
        """The values that are outputs of the graph, or that nodes of graphs inside its nodes use."""
        inner = (node for outer in self.nodes for graph in outer.graphs for node in graph.walk())
        return {*self.outputs, *(name for node in inner for name in node.inputs)}

    def users(self) -> dict[str, list[Node]]:
        """Returns the nodes that use each value, by the value's name."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users.setdefault(name, []).append(node)
        return users

    def makers(self) -> dict[str, Node]:
        """Returns the node that makes each value, by the value's name."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def add_tensor(self, name: str, numbers: NDArray[np.float32] | NDArray[np.int32]) -> None:
        """Adds an initializer of float32 or int32, in the shape of `numbers`."""
        kind = INT32 if numbers.dtype.kind == "i" else FLOAT
        tensor: list[tuple[int, Content]] = [
            *((_TENSOR_SHAPE, size) for size in numbers.shape),
            (_TENSOR_TYPE, kind),
            (_TENSOR_NAME, name.encode()),
            (_TENSOR_RAW, numbers.astype(_TYPES[kind]).tobytes()),
        ]
        self._graph_fields.append((_GRAPH_TENSOR, encode(tensor)))

    def remove_ends(self, names: Set[str]) -> None:
        """Removes inputs and outputs of the graph by their names."""
        self.outputs = [name for name in self.outputs if name not in names]
        self._graph_fields = [
            (number, content)
            for number, content in self._graph_fields
            if number not in (_GRAPH_INPUT, _GRAPH_OUTPUT)
            or not isinstance(content, memoryview)
            or names.isdisjoint(Message(content).texts(_VALUE_NAME))
        ]

    def before(self, *names: str) -> list[Node]:
        """Returns the nodes that compute values, in their order."""
        used, nodes = set(names), []
        for node in reversed(self.nodes):  # the nodes that use a value come after the node that makes it
            if not used.isdisjoint(node.outputs):
                nodes.append(node)
                used.update(node.inputs, *(inner.inputs for graph in node.graphs for inner in graph.walk()))
        return nodes[::-1]

    def remove_unused(self) -> None:
        """Removes the nodes whose outputs nothing uses."""
        self.nodes = self.before(*self.outputs)

    def write(self, opsets: Mapping[str, int]) -> bytes:
        """Encodes the graph, with its present nodes, as an ONNX file.

        Args:
            opsets: Domains that the file did not import, and their versions.
        """
        nodes = [(_GRAPH_NODE, _message(node) if node.content is None else node.content) for node in self.nodes]
        graph = _pieces([*self._graph_fields, *nodes])
        imports = [(_MODEL_OPSET, encode([(1, name.encode()), (2, version)])) for name, version in opsets.items()]
        return encode([*self._model_fields, (_MODEL_GRAPH, graph), *imports])

    def add(self, message: memoryview, depth: int) -> None:
        """Adds the nodes, tensors and outputs of a `GraphProto` to this graph, which is in `depth` other graphs.

        Raises:
            ValueError: Graphs are nested too deeply, or the bytes are not a valid message.
        """  # noqa: DOC502 - what it calls raises it
        _check_depth(depth)
        graph = Message(message)
        self.nodes += [_node(node, depth) for node in graph.messages[_GRAPH_NODE]]
        self.tensors |= map(_tensor, graph.messages[_GRAPH_TENSOR])
        for output in graph.messages[_GRAPH_OUTPUT]:
            self.outputs += Message(output).texts(_VALUE_NAME)
        self._graph_fields += graph.without(_GRAPH_NODE)


def read(model: bytes) -> Graph:
    """Reads the outermost graph of an ONNX file (`ModelProto`), with the functions of the model.

    If the bytes are not a valid message, or graphs are nested too deeply, `fields` or `Graph.add` raises a ValueError.
    """
    graph, parts = Graph(), Message(memoryview(model))
    for message in parts.messages[_MODEL_GRAPH]:
        graph.add(message, 0)
    for message in parts.messages[_MODEL_FUNCTION]:
        graph.functions.append(Graph([_node(node, 0) for node in Message(message).messages[_FUNCTION_NODE]]))
    graph._model_fields = parts.without(_MODEL_GRAPH)
    return graph


def locations(model: bytes) -> set[str]:
    """Returns the names that an ONNX file has for the files with its weights, wherever in it their tensors stand.

    Raises:
        ValueError: The bytes are not a valid message, or graphs are nested too deeply.
    """  # noqa: DOC502 - what it calls raises it
    return {*_locations(memoryview(model), "model", -1)}


def _locations(content: memoryview, kind: str, depth: int) -> Iterator[str]:
    """Yields the names of files in a message of one of the kinds in `_INSIDE`, which is in `depth` + 1 graphs.

    A tensor has an entry of external data with the key `location`.
    """
    message = Message(content)
    depth += kind == "graph"
    _check_depth(depth)
    if kind not in _INSIDE and "location" in message.texts(1):  # a damaged entry may have several keys and values
        yield from message.texts(2)
    for number, inner in _INSIDE.get(kind, {}).items():
        for inner_content in message.messages[number]:
            yield from _locations(inner_content, inner, depth)


def _check_depth(depth: int) -> None:
    """Checks in how many other graphs a graph is.

    Raises:
        ValueError: They are more than `_MOST_NESTED`.
    """
    if depth > _MOST_NESTED:
        raise ValueError(f"graphs are nested more than {_MOST_NESTED} deep")


def _node(message: memoryview, depth: int) -> Node:
    """Reads a `NodeProto` of a graph that is in `depth` other graphs."""
    parts = Message(message)
    node = Node(
        parts.text(_NODE_OPERATOR),
        parts.texts(_NODE_INPUT),
        parts.texts(_NODE_OUTPUT),
        content=message,
        domain=parts.text(_NODE_DOMAIN),
        name=parts.text(_NODE_NAME),
    )
    for attribute in map(Message, parts.messages[_NODE_ATTRIBUTE]):
        name, value = attribute.text(_ATTRIBUTE_NAME), _value(attribute)
        if value is None:
            node.unread.add(name)
        else:
            node.attributes[name] = value
        # Protocol buffers merge a single field that occurs twice: such graphs are one graph.
        single = attribute.messages[_ATTRIBUTE_GRAPH]
        for messages in filter(None, [single, *([message] for message in attribute.messages[_ATTRIBUTE_GRAPHS])]):
            node.graphs.append(Graph())
            for graph in messages:
                node.graphs[-1].add(graph, depth + 1)
    return node


def _value(attribute: Message) -> AttributeValue | None:
    """The value of an `AttributeProto`: a number, a text, integers or a small tensor; None if it has no such value."""
    floats = [struct.unpack("<f", number)[0] for number in attribute.messages[_ATTRIBUTE_FLOAT] if len(number) == 4]
    constants = [_tensor(tensor)[1].constant() for tensor in attribute.messages[_ATTRIBUTE_TENSOR]]
    values: list[AttributeValue] = [
        *(attribute.integers(_ATTRIBUTE_INT, repeated=False) + floats),
        *attribute.texts(_ATTRIBUTE_TEXT),
        *(numbers for numbers in constants if numbers is not None),
        *filter(None, [tuple(attribute.integers(_ATTRIBUTE_INTS))]),
    ]
    return values[-1] if values else None


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    """Reads a `TensorProto`; returns its name, and the tensor."""
    tensor = Message(message)
    kind = [0, *tensor.integers(_TENSOR_TYPE, repeated=False)][-1]
    return tensor.text(_TENSOR_NAME), Tensor(kind, tuple(tensor.integers(_TENSOR_SHAPE)), message)


def _message(node: Node) -> bytes:
    """Encodes a new node as a `NodeProto`."""
    return encode(
        [
            *((_NODE_INPUT, name.encode()) for name in node.inputs),
            *((_NODE_OUTPUT, name.encode()) for name in node.outputs),
            (_NODE_NAME, node.name.encode()),
            (_NODE_OPERATOR, node.operator.encode()),
            (_NODE_DOMAIN, node.domain.encode()),
            *((_NODE_ATTRIBUTE, _attribute(name, value)) for name, value in node.attributes.items()),
        ]
    )


def _attribute(name: str, value: AttributeValue) -> bytes:
    """Encodes an `AttributeProto` whose value is a text, an integer, a float, or integers."""
    name_field: tuple[int, Content] = (_ATTRIBUTE_NAME, name.encode())
    if isinstance(value, str):
        return encode([name_field, (_ATTRIBUTE_TEXT, value.encode()), (_ATTRIBUTE_TYPE, 3)])
    if isinstance(value, int):
        return encode([name_field, (_ATTRIBUTE_INT, value), (_ATTRIBUTE_TYPE, 2)])
    if isinstance(value, float):
        # `encode` has no fields of four bytes.
        float_field = bytes([_ATTRIBUTE_FLOAT << 3 | _FIXED32]) + struct.pack("<f", value)
        return encode([name_field]) + float_field + encode([(_ATTRIBUTE_TYPE, 1)])
    return encode([name_field, *((_ATTRIBUTE_INTS, int(number)) for number in value), (_ATTRIBUTE_TYPE, 7)])
