"""Finds the layers of an int8 graph that the integer kernels compute, and replaces them by these.

    weights (bytes) ─> DequantizeLinear ─> Reshape ─> LSTM   becomes   weights (bytes), scales ─> integer LSTM
    weights (bytes) ─> DequantizeLinear ─> MatMul            becomes   weights (bytes), scales ─> integer MatMul

`lengthwise_export` writes the left side. Its weights are int8 from -63 to 63, with a scale for each output: those of a
layer `[directions * gates * hidden, inputs]`, those of a product `[inputs, outputs]`. Only names and attributes are
read here; the kernels check the weights. The file stays as it is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from lengthwise.runtime.manifest import GraphNames
from lengthwise.runtime.onnx import fusion, onnx_graph
from lengthwise.runtime.onnx.onnx_graph import FLOAT, INT8, Node
from lengthwise.runtime.onnx.pattern import ONNX, NotFound, Pattern, require

DOMAIN: Final = "lengthwise.integer"
"""The domain of the integer kernels' operators. It occurs in no file."""
_OF_FUSION: Final = {"packed"}  # the attribute that `fusion` may have given a layer


class _QuantizedWeights(NamedTuple):
    """The names of two initializers: weights in bytes, and their scales."""

    weights: str
    scales: str


def fused(model: bytes) -> bytes | None:
    """Returns the graph with the operators of the integer kernels in it; None if it has no layer for them."""
    if b"DequantizeLinear" not in model:
        return None
    layers = _Layers(onnx_graph.read(model))
    original_nodes = layers.graph.nodes
    for node in original_nodes:
        with suppress(NotFound):
            layers.replace(node, layers.product(node) if node.operator == "MatMul" else layers.layer(node), [])
    if layers.graph.nodes is original_nodes:  # `replace` makes a new list
        return None
    layers.graph.remove_unused()
    return layers.graph.write({DOMAIN: 1})


def with_packed_steps(model: bytes, *names: GraphNames) -> fusion.FusedGraph | None:
    """Returns the graph with the operators of `fusion`; None if it has no nodes that these replace.

    In an int8 graph, the weights of a Dense are bytes, and this operator computes in float32. So it gets dequantised
    weights. Other products keep their bytes, for the integer kernels.
    """
    fused = fusion.fused(model, *names)
    if fused is None or b"DequantizeLinear" not in model:
        return fused
    layers, kept_nodes = _Layers(onnx_graph.read(fused.graph)), []
    for node in layers.graph.nodes:
        try:
            require(any(user.operator == "Dense" for user in layers.users.get(node.outputs[0], [])))
            quantized = layers.quantized(node.outputs[0], axis=1)
            weights = layers.numbers(quantized.weights, -1, -1) * layers.numbers(quantized.scales, -1)
        except NotFound:
            kept_nodes.append(node)
            continue
        layers.graph.add_tensor(node.outputs[0], weights.astype(np.float32))
    layers.graph.nodes = kept_nodes
    return fused._replace(graph=layers.graph.write({}))


class _Layers(Pattern):
    """Finds the layers of a graph that the integer kernels compute; a method raises `NotFound` where they cannot."""

    def layer(self, node: Node) -> Node:
        """Returns the integer kernel's node for an LSTM or GRU, which must have the kernels' activations and layout.

        The weights of the recurrence must be bytes; those of the inputs may be float32.
        """
        # 1. What the kernels compute
        attributes = node.attributes
        require(node.operator in fusion.LAYERS and node.domain in (*ONNX, fusion.DOMAIN))
        require(not node.unread and attributes.keys() <= fusion.KNOWN | _OF_FUSION)
        require(not attributes.get("layout") and not attributes.get("input_forget"))
        require(node.operator == "LSTM" or attributes.get("linear_before_reset") == 1)
        # 2. Its inputs, as ONNX names them: X, W (weights of the inputs), R (of the recurrence), B (biases), lengths
        # and the first states, of which all numbers must be those of a state: a constant may have others.
        x, w, r, b, lengths, *states = [*node.inputs, *[""] * (5 - len(node.inputs))]
        require(all(map(self.comes_from_outside, states[:2])) and not any(states[2:]))
        input_weights = (w, "") if self._is_tensor(w, FLOAT, 3) else self._layer_weights(w)
        return _integer_node(node, [x, *input_weights, *self._layer_weights(r), b, lengths, *states[:2]])

    def product(self, node: Node) -> Node:
        """Returns the integer kernel's node for a MatMul by weights in bytes."""
        require(node.domain in ONNX and len(node.inputs) == 2)
        return _integer_node(node, [node.inputs[0], *self.quantized(node.inputs[1], axis=1)])

    def _layer_weights(self, name: str) -> _QuantizedWeights:
        """The bytes of a layer's weights, which a Reshape brings to `[directions, gates * hidden, inputs]`."""
        return self.quantized(self.maker(name, "Reshape").inputs[0], axis=0)

    def quantized(self, name: str, *, axis: int) -> _QuantizedWeights:
        """Returns the names of the bytes `[rows, columns]` and scales from which a value is dequantised.

        There is one scale for each index of `axis`.
        """
        dequantize = self.maker(name, "DequantizeLinear")
        require({"axis": 1, **dequantize.attributes} == {"axis": axis} and not dequantize.unread)
        require(len(dequantize.inputs) == 2)
        quantized = _QuantizedWeights(*dequantize.inputs)
        require(self._is_tensor(quantized.weights, INT8, 2) and self._is_tensor(quantized.scales, FLOAT, 1))
        return quantized

    def _is_tensor(self, name: str, kind: int, rank: int) -> bool:
        """Whether a value is an initializer of this type and with so many axes."""
        tensor = self.graph.tensors.get(name)
        return tensor is not None and (tensor.kind, len(tensor.shape)) == (kind, rank)


def _integer_node(node: Node, inputs: list[str]) -> Node:
    """Makes the integer kernel's node that replaces a node: the operator has the same name, and other inputs."""
    return Node(node.operator, inputs, node.outputs, node.attributes, domain=DOMAIN, name=node.name)
