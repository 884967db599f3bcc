"""Converts the recurrent layers and the products of a graph to int8.

    weights (float32) ─> LSTM     becomes   weights (int8), scales ─> DequantizeLinear ─> Reshape ─> LSTM
    weights (float32) ─> MatMul   becomes   weights (int8), scales ─> DequantizeLinear ─> MatMul

That is plain ONNX; the service puts integer kernels in its place (`lengthwise.runtime.onnx.integer_layers`). A weight
is a whole number of at most 63 times the scale of its output: seven bits, because processors without VNNI add two
products of bytes in 16 bits. Weights of few inputs stay in float32 (usually the first layer, whose inputs are data of
any size), and the last products before an output, whose rounding would be the answer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lengthwise_export.onnx_graphs.protos import OF_ONNX, attributes_of, graphs_in, names_in, refill

LARGEST_WEIGHT: Final = 63  # the largest size of a weight; the kernels refuse larger ones
FEW_INPUTS: Final = 32  # weights of fewer inputs than this stay in float32

_GATES: Final = {"LSTM": 4, "GRU": 3}
_KEEP_ZEROS: Final = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that give zeros of zeros, their first input."""


@dataclass(frozen=True, slots=True)
class FloatLayer:
    """A recurrent layer that stays in float32."""

    name: str  # The node's name, or its first output
    operator: str  # `LSTM`, `GRU` or `RNN`
    reason: str  # What the integer kernels cannot compute

    def __str__(self) -> str:
        """`LSTM encoder/lstm`."""
        return f"{self.operator} {self.name}"


@dataclass(frozen=True, slots=True)
class Int8Layers:
    """What was converted."""

    recurrent: int
    products: int
    left: tuple[FloatLayer, ...]  # The recurrent layers that stay in float32


def convert(graph: GraphProto, constants: Mapping[str, TensorProto], last: AbstractSet[str]) -> Int8Layers:
    """Converts the layers of a graph in place, but for the products with an output in `last`."""
    zeros = _zeros(graph, constants)
    nodes: list[NodeProto] = []
    recurrent, products, left = 0, 0, [*_inner_layers(graph)]
    for node in graph.node:
        if node.op_type in (*_GATES, "RNN") and node.domain in OF_ONNX:
            reason = _reason(node, constants, zeros)
            if reason is None:
                nodes += _dequantised(graph, node, constants)
                recurrent += 1
            else:
                left.append(FloatLayer(node.name or node.output[0], node.op_type, reason))
        elif _is_wide_product(node, constants) and node.output[0] not in last:
            nodes.append(_dequantised_product(graph, node, constants))
            products += 1
        nodes.append(node)
    # The float32 weights that no node uses any more go away.
    used = {*(value.name for value in graph.output), *names_in(nodes)}
    refill(graph.node, (node for node in nodes if node.op_type != "Constant" or used.intersection(node.output)))
    refill(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in used))
    return Int8Layers(recurrent, products, tuple(left))


def rounded(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights `[outputs, inputs]` as bytes and a scale for each output `[outputs]`."""
    largest = np.abs(weights).max(axis=1)
    scales = np.where(largest > 0, largest / LARGEST_WEIGHT, 1).astype(np.float32)
    whole = np.rint(weights / scales[:, None])
    return np.clip(whole, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8), scales


def _reason(node: NodeProto, constants: Mapping[str, TensorProto], zeros: AbstractSet[str]) -> str | None:
    if node.op_type not in _GATES:
        return "there are integer kernels for LSTM and GRU only"
    attributes = attributes_of(node)
    _, w, r, b, _, *others = [*node.input, *[""] * 5]
    *first_states, peepholes = others[:3]
    if peepholes:
        return "it has peepholes"
    if any(name and name not in zeros for name in first_states):
        return "it begins with states of its own, which may be larger than 1"
    if attributes.keys() & {"activations", "activation_alpha", "activation_beta", "clip"}:
        return "it has other activations, or a clip"
    if attributes.get("input_forget"):
        return "its input and forget gates are coupled"
    if attributes.get("layout"):
        return "its rows come before its steps"
    if node.op_type == "GRU" and not attributes.get("linear_before_reset"):
        return "its reset gate comes before the product (linear_before_reset = 0)"
    if w not in constants or r not in constants or (b and b not in constants):
        return "its weights are computed"
    weights = [numpy_helper.to_array(constants[name]) for name in (w, r)]
    if not all(each.dtype == np.float32 and each.ndim == 3 and np.isfinite(each).all() for each in weights):
        return "its weights are not finite float32 numbers"
    return None


def _dequantised(graph: GraphProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[NodeProto]:
    """Stores a layer's weights as bytes, and gives the nodes that dequantise them. First states of zeros go away."""
    del node.input[5:]
    for place, name in ((1, "W"), (2, "R")):
        weights = numpy_helper.to_array(constants[node.input[place]])
        stem = f"{node.name or node.output[0]}/{name}"
        if place == 1 and weights.shape[2] < FEW_INPUTS:
            if node.input[1] not in {tensor.name for tensor in graph.initializer}:
                graph.initializer.append(numpy_helper.from_array(weights, f"{stem}_float32"))
                node.input[1] = f"{stem}_float32"
            continue
        whole, scales = rounded(weights.reshape(-1, weights.shape[2]))
        shape = np.array(weights.shape, np.int64)
        for part, values in (("int8", whole), ("scale", scales), ("shape", shape)):
            graph.initializer.append(numpy_helper.from_array(values, f"{stem}_{part}"))
        flat, found = f"{stem}_flat", f"{stem}_dequantized"
        yield helper.make_node("DequantizeLinear", [f"{stem}_int8", f"{stem}_scale"], [flat], f"{flat}_node", axis=0)
        yield helper.make_node("Reshape", [flat, f"{stem}_shape"], [found], f"{found}_node")
        node.input[place] = found


def _is_wide_product(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node multiplies values with a constant matrix that is worth it."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx") or node.input[1] not in constants:
        return False
    weights = numpy_helper.to_array(constants[node.input[1]])
    wide = weights.ndim == 2 and min(weights.shape) >= FEW_INPUTS
    return wide and weights.dtype == np.float32 and bool(np.isfinite(weights).all())


def _dequantised_product(graph: GraphProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> NodeProto:
    """Stores a product's weights as bytes, and gives the node that dequantises them."""
    stem = f"{node.name or node.output[0]}/weights"
    whole, scales = rounded(numpy_helper.to_array(constants[node.input[1]]).T)
    for part, values in (("int8", np.ascontiguousarray(whole.T)), ("scale", scales)):
        graph.initializer.append(numpy_helper.from_array(values, f"{stem}_{part}"))
    node.input[1] = f"{stem}_dequantized"
    names = [f"{stem}_int8", f"{stem}_scale"]
    return helper.make_node("DequantizeLinear", names, [node.input[1]], f"{stem}_node", axis=1)


def _zeros(graph: GraphProto, constants: Mapping[str, TensorProto]) -> set[str]:
    """The values that are zeros whatever their shape, such as the first states that torch.onnx writes."""
    found = {name for name, tensor in constants.items() if not numpy_helper.to_array(tensor).any()}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            filled = [numpy_helper.to_array(attribute.t) for attribute in node.attribute]
            is_zero = not any(value.any() for value in filled)
        else:
            is_zero = node.op_type in _KEEP_ZEROS and node.input[0] in found
        if is_zero:
            found.update(node.output)
    return found


def _inner_layers(graph: GraphProto) -> Iterator[FloatLayer]:
    """The recurrent layers of the graphs inside nodes, which stay in float32."""
    for node in graph.node:
        for inner in graphs_in(node):
            for each in inner.node:
                if each.op_type in (*_GATES, "RNN"):
                    yield FloatLayer(each.name or each.output[0], each.op_type, f"it is inside a {node.op_type}")
            yield from _inner_layers(inner)
