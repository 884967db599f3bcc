"""Finds the layers of an int8 graph that the integer kernels compute, and replaces them by these.

    weights (bytes) ─> DequantizeLinear ─> Reshape ─> LSTM   becomes   weights (bytes), scales ─> integer LSTM
    weights (bytes) ─> DequantizeLinear ─> MatMul            becomes   weights (bytes), scales ─> integer MatMul

`lengthwise_export` writes the left side: weights are int8 of at most 63 in size, `[directions * gates * hidden,
inputs]` or of a product `[inputs, outputs]`, with a scale for each output. Only names and attributes are read here; the
kernels check the weights. The file stays as it is.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from lengthwise.runtime.onnx import fusion, onnx_graph
from lengthwise.runtime.onnx.onnx_graph import FLOAT, INT8, Node
from lengthwise.runtime.onnx.pattern import ONNX, NotFound, Pattern, require

DOMAIN: Final = "lengthwise.integer"
"""The domain of the integer kernels' operators. It occurs in no file."""
_OF_FUSION: Final = {"order", "zeros"}  # the attributes that `fusion` may have given a layer


class _Bytes(NamedTuple):
    """Dequantised weights: the names of the bytes and of their scales."""

    weights: str
    scales: str


def fused(model: bytes) -> bytes | None:
    """The graph with the operators of the integer kernels in it; None if it has no layer for them."""
    if b"DequantizeLinear" not in model:
        return None
    layers = _Layers(onnx_graph.read(model))
    before = layers.graph.nodes
    for node in before:
        with suppress(NotFound):
            layers.replace(node, layers.product(node) if node.operator == "MatMul" else layers.layer(node), [])
    if layers.graph.nodes is before:
        return None
    layers.graph.remove_unused()
    return layers.graph.write({DOMAIN: 1})


def with_pooling(model: bytes) -> fusion.FusedGraph | None:
    """As `fusion.fused`, for a graph whose attention pooling may have weights in bytes.

    The operator for attention pooling computes valid steps only, in float32. Where it fits, it gets dequantised
    weights: padding costs more than the product in float32.
    """
    if b"DequantizeLinear" not in model:
        return fusion.fused(model)
    fused = fusion.fused(_with_float_weights(model, None))
    if fused is None or not fused.pools:
        return fusion.fused(model)
    nodes = onnx_graph.read(fused.graph).nodes
    pooled = {name for node in nodes if node.operator == "AttentionPooling" for name in node.inputs}
    return fusion.fused(_with_float_weights(model, pooled))


def _with_float_weights(model: bytes, names: AbstractSet[str] | None) -> bytes:
    """The graph with int8 weights of products as float32: all weights, or those that become the values `names`.

    Raises:
        NotFound: Never leaves this function: the node is kept.
    """
    layers = _Layers(onnx_graph.read(model))
    nodes = []
    for node in layers.graph.nodes:
        try:
            require(names is None or names >= set(node.outputs))
            integers, scales = (
                layers.graph.tensors[name].numbers() for name in layers.bytes_of(node.outputs[0], axis=1)
            )
            if integers is None or scales is None:
                raise NotFound
            layers.graph.add_tensor(node.outputs[0], (integers * scales).astype(np.float32))
        except NotFound:
            nodes.append(node)
    layers.graph.nodes = nodes
    return layers.graph.write({})


class _Layers(Pattern):
    """Finds the layers of a graph that the integer kernels compute."""

    def layer(self, node: Node) -> Node:
        """The operator that replaces a layer with the activations, layout and order of gates of the kernels."""
        attributes = node.attributes
        require(node.operator in fusion.LAYERS and node.domain in (*ONNX, fusion.DOMAIN))
        require(not node.unread and attributes.keys() <= fusion.KNOWN | _OF_FUSION)
        require(not attributes.get("layout") and not attributes.get("input_forget"))
        require(node.operator == "LSTM" or attributes.get("linear_before_reset") == 1)
        x, w, r, b, lengths, *others = [*node.inputs, *[""] * 5]
        require(not any(others))
        weights_of_inputs = (w, "") if self._is_tensor(w, FLOAT, 3) else self._dequantised(w)
        return _replaced(node, [x, *weights_of_inputs, *self._dequantised(r), b, lengths])

    def product(self, node: Node) -> Node:
        """The operator that replaces a product with constant weights."""
        require(node.domain in ONNX and len(node.inputs) == 2)
        return _replaced(node, [node.inputs[0], *self.bytes_of(node.inputs[1], axis=1)])

    def _dequantised(self, name: str) -> _Bytes:
        """The bytes that are dequantised to weights `[directions, gates * hidden, inputs]`, through a Reshape."""
        return self.bytes_of(self.maker(name, "Reshape").inputs[0], axis=0)

    def bytes_of(self, name: str, *, axis: int) -> _Bytes:
        """The bytes `[rows, columns]` that are dequantised to a value, with a scale for each index of `axis`."""
        dequantize = self.maker(name, "DequantizeLinear")
        require({"axis": 1, **dequantize.attributes} == {"axis": axis} and not dequantize.unread)
        require(len(dequantize.inputs) == 2)
        quantized = _Bytes(*dequantize.inputs)
        require(self._is_tensor(quantized.weights, INT8, 2) and self._is_tensor(quantized.scales, FLOAT, 1))
        return quantized

    def _is_tensor(self, name: str, kind: int, axes: int) -> bool:
        tensor = self.graph.tensors.get(name)
        return tensor is not None and (tensor.kind, len(tensor.shape)) == (kind, axes)


def _replaced(node: Node, names: list[str]) -> Node:
    """The integer kernel's node in the place of a node, with other inputs."""
    return Node(node.operator, names, node.outputs, node.attributes, domain=DOMAIN, name=node.name)
