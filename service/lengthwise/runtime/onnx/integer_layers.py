"""Finds the layers of an int8 graph that the integer kernels compute, and puts these in their place.

    weights (bytes) ─> DequantizeLinear ─> Reshape ─> LSTM   becomes   weights (bytes), scales ─> integer LSTM
    weights (bytes) ─> DequantizeLinear ─> MatMul            becomes   weights (bytes), scales ─> integer MatMul

`lengthwise_export` writes the left side: weights are int8 of at most 63 in size, `[directions * gates * hidden,
inputs]` or of a product `[inputs, outputs]`, with a scale for each output. Only names and attributes are read here; the
kernels check the weights. The file stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

import numpy as np

from lengthwise.runtime.integer_kernels import DOMAIN
from lengthwise.runtime.onnx import fusion, onnx_graph
from lengthwise.runtime.onnx.onnx_graph import FLOAT, INT8, Graph, Node, Tensor

_ONNX: Final = ("", "ai.onnx")
_LAYERS: Final = (*_ONNX, fusion.DOMAIN)
"""The domains of LSTM and GRU: `fusion` may have given a layer the order of its output."""
_OF_FUSION: Final = {"order", "zeros"}  # the attributes that `fusion` may have given a layer


class _Bytes(NamedTuple):
    """Dequantised weights: the names of the bytes and of their scales."""

    weights: str
    scales: str


def fused(model: bytes) -> bytes | None:
    """The same graph with the integer kernels' operators; None if it has no layer for them."""
    if b"DequantizeLinear" not in model:
        return None
    graph = onnx_graph.read(model)
    makers = graph.makers()
    layers = {
        id(node): layer
        for node in graph.nodes
        if (layer := _integer_layer(node, makers, graph.tensors) or _integer_product(node, makers, graph.tensors))
    }
    if not layers:
        return None
    graph.nodes = [layers.get(id(node), node) for node in graph.nodes]
    unused = _unused(graph)
    graph.nodes = [node for node in graph.nodes if not unused.intersection(node.outputs)]
    return graph.write({DOMAIN: 1})


def with_pooling(model: bytes) -> fusion.FusedGraph | None:
    """As `fusion.fused`, for a graph whose attention pooling may have weights in bytes.

    The operator for attention pooling computes valid steps only, in float32. Where it fits, it gets dequantised
    weights: padding costs more than the product in float32.
    """
    if b"DequantizeLinear" not in model:
        return fusion.fused(model)
    found = fusion.fused(_with_float_weights(model, None))
    if found is None or not found.pools:
        return fusion.fused(model)
    nodes = onnx_graph.read(found.graph).nodes
    pooled = {name for node in nodes if node.operator == "AttentionPooling" for name in node.inputs}
    return fusion.fused(_with_float_weights(model, pooled))


def _with_float_weights(model: bytes, names: AbstractSet[str] | None) -> bytes:
    """The graph with the weights of products as float32, dequantised; all, or those with one of these names."""
    graph = onnx_graph.read(model)
    kept = []
    for node in graph.nodes:
        weights = _bytes(node, 1, graph.tensors) if names is None or names >= set(node.outputs) else None
        whole, scales = (None, None) if weights is None else (graph.tensors[name].numbers() for name in weights)
        if whole is None or scales is None:
            kept.append(node)
        else:
            graph.add_tensor(node.outputs[0], (whole * scales).astype(np.float32))
    graph.nodes = kept
    return graph.write({})


def _integer_layer(node: Node, makers: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Node | None:
    """The operator in the place of a layer; None if the node is not one, or not in the form that the kernels know."""
    if node.operator not in ("LSTM", "GRU") or node.domain not in _LAYERS or not _is_plain(node):
        return None
    x, w, r, b, lengths, *others = [*node.inputs, *[""] * 5]
    states, inputs = _dequantised(r, makers, tensors), _dequantised(w, makers, tensors)
    if states is None or any(others) or (inputs is None and not _is_tensor(tensors.get(w), FLOAT, 3)):
        return None
    of_inputs = [w, ""] if inputs is None else [inputs.weights, inputs.scales]
    return _replaced(node, [x, *of_inputs, states.weights, states.scales, b, lengths])


def _integer_product(node: Node, makers: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> Node | None:
    """The operator in the place of a product with constant weights; None if the node is not one."""
    if node.operator != "MatMul" or node.domain not in _ONNX or len(node.inputs) != 2:
        return None
    weights = _bytes(makers.get(node.inputs[1]), 1, tensors)
    return None if weights is None else _replaced(node, [node.inputs[0], weights.weights, weights.scales])


def _replaced(node: Node, names: list[str]) -> Node:
    return Node(node.operator, names, node.outputs, node.attributes, domain=DOMAIN, name=node.name)


def _is_plain(node: Node) -> bool:
    """Whether a layer has the activations, the layout and the order of gates that the kernels compute."""
    known = {"direction", "hidden_size", "layout", "input_forget", "linear_before_reset"} | _OF_FUSION
    said = node.attributes
    is_known = not node.unread and said.keys() <= known and not said.get("layout") and not said.get("input_forget")
    return is_known and (node.operator == "LSTM" or said.get("linear_before_reset") == 1)


def _dequantised(name: str, makers: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> _Bytes | None:
    """The bytes behind dequantised weights `[directions, gates * hidden, inputs]`; None if they are not such."""
    reshape = makers.get(name)
    if reshape is None or reshape.operator != "Reshape" or reshape.domain not in _ONNX or not reshape.inputs:
        return None
    return _bytes(makers.get(reshape.inputs[0]), 0, tensors)


def _bytes(dequantize: Node | None, axis: int, tensors: Mapping[str, Tensor]) -> _Bytes | None:
    """The bytes that a node dequantises, with a scale along an axis of two; None if it does not do that."""
    if dequantize is None or dequantize.operator != "DequantizeLinear" or dequantize.domain not in _ONNX:
        return None
    if {"axis": 1, **dequantize.attributes} != {"axis": axis} or dequantize.unread or len(dequantize.inputs) != 2:
        return None
    weights, scales = dequantize.inputs
    is_dequantized = _is_tensor(tensors.get(weights), INT8, 2) and _is_tensor(tensors.get(scales), FLOAT, 1)
    return _Bytes(weights, scales) if is_dequantized else None


def _is_tensor(tensor: Tensor | None, kind: int, axes: int) -> bool:
    return tensor is not None and (tensor.kind, len(tensor.shape)) == (kind, axes)


def _unused(graph: Graph) -> set[str]:
    """The outputs of Reshape and DequantizeLinear nodes that nothing uses any more."""
    unused: set[str] = set()
    left = graph.nodes
    for node in reversed(graph.nodes):  # what uses a value stands behind what makes it
        if node.operator in ("Reshape", "DequantizeLinear"):
            used = graph.used_elsewhere.union(*(other.inputs for other in left))
            if not used.intersection(node.outputs):
                unused.update(node.outputs)
                left = [other for other in left if other is not node]
    return unused
