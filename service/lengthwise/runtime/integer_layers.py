"""Finds the layers of an int8 graph that the integer kernels compute, and puts these in their place.

    weights (bytes) ─> DequantizeLinear ─> Reshape ─> LSTM   becomes   weights (bytes), scales ─> integer LSTM
    weights (bytes) ─> DequantizeLinear ─> MatMul            becomes   weights (bytes), scales ─> integer MatMul

`lengthwise_export` writes the left side: plain ONNX, in which weights are int8 of at most 63 in size, with a scale for
each output. Those of an LSTM or GRU are `[directions * gates * hidden, inputs]`, those of a product `[inputs,
outputs]`. `fused` rewrites the graph's bytes before onnxruntime opens them; the file stays as it is. Only names and
attributes are read here. The kernels check the weights.

The service does not have the package `onnx`, so messages are read and written by the field numbers of `onnx.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime import fusion
from lengthwise.runtime.integer_kernels import DOMAIN
from lengthwise.runtime.onnx_graph import fields

Content = memoryview | bytes | int
"""The content of a field: a string or message, or an integer."""

_ONNX: Final = ("", "ai.onnx")
_LAYERS: Final = (*_ONNX, fusion.DOMAIN)
"""The domains of LSTM and GRU: `fusion` may have given a layer the order of its output."""
_INT8, _FLOAT = 3, 1
_OF_FUSION: Final = {"order", "zeros"}
"""The attributes that `fusion` may have given a layer."""
_INPUTS: Final = ("x", "w", "r", "b", "lengths")
"""The inputs of ONNX's LSTM and GRU that the kernels know; further ones must be omitted."""


@dataclass(slots=True)
class _Node:
    """A `NodeProto`: its fields as they are, and those that are looked at."""

    raw: list[tuple[int, Content]] = field(default_factory=list)
    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, int | str | None] = field(default_factory=dict)
    has_graphs: bool = False


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Dequantised weights: the names of the bytes and of their scales."""

    weights: str
    scales: str


def fused(model: bytes) -> bytes | None:
    """The same graph with the integer kernels' operators; None if it has no layer for them.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    if b"DequantizeLinear" not in model:
        return None
    outer = list(fields(memoryview(model)))
    graphs = [value for number, value in outer if number == 7 and isinstance(value, memoryview)]
    if len(graphs) != 1:  # a message in two parts is valid, and nobody writes it
        return None
    graph = _fused_graph(graphs[0])
    if graph is None:
        return None
    operators = _message([(1, DOMAIN.encode()), (2, 1)])
    return _message([*((number, graph if number == 7 else value) for number, value in outer), (8, operators)])


def with_pooling(model: bytes) -> fusion.FusedGraph | None:
    """As `fusion.fused`, for a graph whose attention pooling may have weights in bytes.

    The operator for attention pooling computes valid steps only, in float32. Where it fits, it gets dequantised
    weights: padding costs more than the product in float32.

    Raises:
        ValueError: The bytes are not a protocol-buffers message.
    """
    if b"DequantizeLinear" not in model:
        return fusion.fused(model)
    found = fusion.fused(_with_float_weights(model, None))
    if found is None or not found.pools:
        return fusion.fused(model)
    graph = next(value for number, value in fields(memoryview(found.graph)) if number == 7)
    nodes = [_node(value) for number, value in fields(memoryview(_part(graph))) if number == 1]
    pooled = {name for node in nodes if node.operator == "AttentionPooling" for name in node.inputs}
    return fusion.fused(_with_float_weights(model, pooled))


def _with_float_weights(model: bytes, names: AbstractSet[str] | None) -> bytes:
    """The graph with the weights of products as float32, dequantised; all, or those with one of these names."""
    outer: list[tuple[int, Content]] = []
    for number, value in fields(memoryview(model)):
        outer.append((number, _dequantised_graph(value, names) if number == 7 else value))
    return _message(outer)


def _dequantised_graph(value: Content, names: AbstractSet[str] | None) -> bytes:
    content = list(fields(memoryview(_part(value))))
    tensors = {name: tensor for number, tensor in content if number == 5 for name in [_tensor(_part(tensor))[0]]}
    shapes = dict(_tensor(_part(tensor)) for tensor in tensors.values())
    kept: list[tuple[int, Content]] = []
    for number, part in content:
        node = _node(part) if number == 1 else _Node()
        weights = _bytes(node, 1, shapes)
        wanted = weights is not None and (names is None or node.outputs[0] in names)
        whole = _numbers(tensors[weights.weights]) if weights is not None and wanted else None
        scales = _numbers(tensors[weights.scales]) if weights is not None and whole is not None else None
        if whole is None or scales is None:
            kept.append((number, part))
            continue
        floats = (whole * scales).astype(np.float32)
        sizes: list[tuple[int, Content]] = [(1, size) for size in floats.shape]
        kept.append((5, _message([*sizes, (2, _FLOAT), (8, node.outputs[0].encode()), (9, floats.tobytes())])))
    return _message(kept)


def _numbers(tensor: Content) -> NDArray[Any] | None:
    """The numbers of a `TensorProto` of bytes or floats; None if they are in another file, or stored in another way."""
    sizes: list[int] = []
    kind, raw = 0, None
    for number, content in fields(memoryview(_part(tensor))):
        if number == 1 and isinstance(content, int):
            sizes.append(content)
        elif number == 2 and isinstance(content, int):
            kind = content
        elif number == 9 and isinstance(content, memoryview):
            raw = content
    size = {_INT8: 1, _FLOAT: 4}.get(kind)
    if raw is None or size is None or len(raw) != math.prod(sizes) * size:
        return None
    return np.frombuffer(bytes(raw), np.int8 if kind == _INT8 else np.dtype("<f4")).reshape(sizes)


def _part(value: Content) -> memoryview:
    """A field that is a message; empty if it is a number."""
    return memoryview(b"") if isinstance(value, int) else memoryview(value)


def _fused_graph(message: memoryview) -> bytes | None:
    """The `GraphProto` with the integer kernels' operators; None if there is no layer for them."""
    content = list(fields(message))
    nodes = {place: _node(value) for place, (number, value) in enumerate(content) if number == 1}
    shapes = dict(_tensor(value) for number, value in content if number == 5 and isinstance(value, memoryview))
    makers = {name: node for node in nodes.values() for name in node.outputs}
    layers = {}
    for place, node in nodes.items():
        layer = _integer_layer(node, makers, shapes) or _integer_product(node, makers, shapes)
        if layer is not None:
            layers[place] = layer
    if not layers:
        return None
    if any(node.has_graphs for node in nodes.values()):
        unused = set()  # a graph inside a node may use any value
    else:
        left = [layers.get(place, node) for place, node in nodes.items()]
        unused = _unused(left, [_name(value) for number, value in content if number == 12])
    kept: list[tuple[int, Content]] = []
    for place, (number, value) in enumerate(content):
        if place in layers:
            kept.append((1, _message(layers[place].raw)))
        elif place not in nodes or not unused.intersection(nodes[place].outputs):
            kept.append((number, value))
    return _message(kept)


def _integer_layer(node: _Node, makers: Mapping[str, _Node], shapes: Mapping[str, tuple[int, int]]) -> _Node | None:
    """The operator in the place of a layer; None if the node is not one, or not in the form that the kernels know."""
    if node.operator not in ("LSTM", "GRU") or node.domain not in _LAYERS or not _is_plain(node):
        return None
    x, w, r, b, lengths = [*node.inputs, *[""] * len(_INPUTS)][: len(_INPUTS)]
    states, inputs = _dequantised(r, makers, shapes), _dequantised(w, makers, shapes)
    if states is None or any(node.inputs[len(_INPUTS) :]):
        return None
    if inputs is None and shapes.get(w) != (_FLOAT, 3):
        return None
    of_inputs = [w, ""] if inputs is None else [inputs.weights, inputs.scales]
    names = [x, *of_inputs, states.weights, states.scales, b, lengths]
    return _replaced(node, names)


def _integer_product(node: _Node, makers: Mapping[str, _Node], shapes: Mapping[str, tuple[int, int]]) -> _Node | None:
    """The operator in the place of a product with constant weights; None if the node is not one."""
    if node.operator != "MatMul" or node.domain not in _ONNX or len(node.inputs) != 2:
        return None
    weights = _bytes(makers.get(node.inputs[1]), 1, shapes)
    return None if weights is None else _replaced(node, [node.inputs[0], weights.weights, weights.scales])


def _replaced(node: _Node, names: list[str]) -> _Node:
    """The operator of the integer kernels with a node's name, and with these inputs."""
    raw: list[tuple[int, Content]] = [(1, name.encode()) for name in names]
    raw += [(number, value) for number, value in node.raw if number not in (1, 7)]
    return _Node([*raw, (7, DOMAIN.encode())], node.operator, DOMAIN, names, node.outputs)


def _is_plain(node: _Node) -> bool:
    """Whether a layer has the activations, the layout and the order of gates that the kernels compute."""
    known = {"direction", "hidden_size", "layout", "input_forget", "linear_before_reset"} | _OF_FUSION
    attributes = node.attributes
    return (
        attributes.keys() <= known
        and not attributes.get("layout")
        and not attributes.get("input_forget")
        and (node.operator == "LSTM" or attributes.get("linear_before_reset") == 1)
    )


def _dequantised(name: str, makers: Mapping[str, _Node], shapes: Mapping[str, tuple[int, int]]) -> _Bytes | None:
    """The bytes behind dequantised weights `[directions, gates * hidden, inputs]`; None if they are not such."""
    reshape = makers.get(name)
    if reshape is None or reshape.operator != "Reshape" or reshape.domain not in _ONNX or not reshape.inputs:
        return None
    return _bytes(makers.get(reshape.inputs[0]), 0, shapes)


def _bytes(dequantize: _Node | None, axis: int, shapes: Mapping[str, tuple[int, int]]) -> _Bytes | None:
    """The bytes that a node dequantises, with a scale along an axis of two; None if it does not do that."""
    if dequantize is None or dequantize.operator != "DequantizeLinear" or dequantize.domain not in _ONNX:
        return None
    if dequantize.attributes.get("axis", 1) != axis or dequantize.attributes.keys() - {"axis"}:
        return None
    if len(dequantize.inputs) != 2:
        return None
    weights, scales = dequantize.inputs
    if shapes.get(weights) != (_INT8, 2) or shapes.get(scales) != (_FLOAT, 1):
        return None
    return _Bytes(weights, scales)


def _unused(nodes: Iterable[_Node], outputs: Iterable[str]) -> set[str]:
    """The outputs of Reshape and DequantizeLinear nodes that nothing uses any more."""
    waiting = [node for node in nodes if node.operator in ("Reshape", "DequantizeLinear")]
    used = {name for node in nodes for name in node.inputs} | set(outputs)
    unused: set[str] = set()
    for node in reversed(waiting):  # what uses a value stands behind what makes it
        if not used.intersection(node.outputs):
            unused.update(node.outputs)
            others = [other for other in nodes if not unused.intersection(other.outputs)]
            used = {name for other in others for name in other.inputs} | set(outputs)
    return unused


def _node(value: Content) -> _Node:
    """Reads a `NodeProto`."""
    node = _Node()
    if isinstance(value, int):
        return node
    for number, content in fields(memoryview(value)):
        node.raw.append((number, content))
        if isinstance(content, int):
            continue
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(_text(content))
        elif number == 4:
            node.operator = _text(content)
        elif number == 7:
            node.domain = _text(content)
        elif number == 5:
            name, attribute, has_graphs = _attribute(content)
            node.attributes[name] = attribute
            node.has_graphs |= has_graphs
    return node


def _attribute(message: memoryview) -> tuple[str, int | str | None, bool]:
    """An `AttributeProto`: its name, its value if that is an integer or a string, and whether it has graphs."""
    name, found, has_graphs = "", None, False
    value: int | str | None = None
    for number, content in fields(message):
        if number == 1 and not isinstance(content, int):
            name = _text(content)
        elif number == 3 and isinstance(content, int):
            found = content
        elif number == 4 and not isinstance(content, int):
            value = _text(content)
        elif number in (6, 11):
            has_graphs = True
    return name, found if value is None else value, has_graphs


def _tensor(message: memoryview) -> tuple[str, tuple[int, int]]:
    """The name of a `TensorProto`, and the type and the number of dimensions."""
    name, kind, dimensions = "", 0, 0
    for number, content in fields(message):
        if number == 1:  # one number, or several packed
            dimensions += 1 if isinstance(content, int) else sum(byte < 0x80 for byte in content)
        elif number == 2 and isinstance(content, int):
            kind = content
        elif number == 8 and not isinstance(content, int):
            name = _text(content)
    return name, (kind, dimensions)


def _name(value: Content) -> str:
    """The name of a `ValueInfoProto`."""
    names = () if isinstance(value, int) else fields(memoryview(value))
    return next((_text(content) for number, content in names if number == 1 and not isinstance(content, int)), "")


def _text(value: memoryview) -> str:
    return bytes(value).decode(errors="replace")


def _message(content: Iterable[tuple[int, Content]]) -> bytes:
    """A message of these fields."""
    return b"".join(_encoded(content))


def _encoded(content: Iterable[tuple[int, Content]]) -> Iterator[bytes | memoryview]:
    for number, value in content:
        if isinstance(value, int):
            yield _varint(number << 3) + _varint(value)
        else:
            yield _varint(number << 3 | 2) + _varint(len(value))
            yield value


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
