"""Converts a verified float32 graph to fp16 or int8. Inputs and outputs keep their types.

fp16: LSTM, GRU, RNN and products with weights run in float16, and nodes between two of them that only move numbers or
keep them small. Masks, normalisation, sums, softmax and the last product before an output stay in float32: no masking
constant is rounded (onnxruntime's own converter clamps them to -65504), no length above 2048 is miscounted, and no sum
overflows. The CPU computes most of these nodes in float32, with weights rounded to float16.

int8 is plain ONNX; the service runs it in integer kernels (`lengthwise.runtime.onnx.integer_layers`):

    weights (float32) ─> LSTM     becomes   weights (int8), scales ─> DequantizeLinear ─> Reshape ─> LSTM
    weights (float32) ─> MatMul   becomes   weights (int8), scales ─> DequantizeLinear ─> MatMul

A weight is a whole number of at most 63 times the scale of its output: seven bits, because processors without VNNI add
two products of bytes in 16 bits. Weights of few inputs stay in float32 (usually the first layer, whose inputs are data
of any size), and the last products before an output, whose rounding would be the answer's. Nothing depends on other
rows, so batches and widths are those of float32.

A *product* is a MatMul, Gemm or Conv. *Constants* are initializers and the outputs of Constant nodes, by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from copy import deepcopy
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper, shape_inference

from lengthwise.exporter_api.contract import Manifest, Precision
from lengthwise_export.errors import ExportError
from lengthwise_export.onnx_graphs.carried_states import carried
from lengthwise_export.onnx_graphs.protos import (
    OF_ONNX,
    NodeWriter,
    all_names,
    attributes_of,
    constants_of,
    graphs_in,
    keep_needed,
    names_in,
    refill,
)

LARGEST_HALF: Final = float(np.finfo(np.float16).max)
LARGEST_WEIGHT: Final = 63  # the largest size of a weight at int8; the kernels refuse larger ones
FEW_INPUTS: Final = 32  # weights of fewer inputs than this stay in float32

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})
_MOVES: Final = frozenset(
    {"Concat", "Expand", "Flatten", "Identity", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Tanh"}
    | {"Transpose", "Unsqueeze", "Where"}
)
"""Operators whose outputs are not larger than their inputs, or are bounded."""
_KEEP_ZEROS: Final = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose output is zero if their first input is."""


def manifest_at(manifest: Manifest, precision: Precision) -> Manifest:
    """A copy of a manifest for the same model at another precision.

    At int8 a model that handles missing values, which are NaN, is marked to refuse them: integer kernels answer NaN.
    (The built-in layers replace NaN before that.)
    """
    refuses = precision == "int8" and manifest.missing == "handled"
    return manifest.model_copy(update={"precision": precision, **({"missing": "refuse"} if refuses else {})})


def convert(graph: ModelProto, precision: Precision) -> ModelProto:
    """A copy of a float32 graph at this precision, with the same inputs and outputs; for `fp32` the graph itself."""
    if precision == "fp32":
        return graph
    converted = deepcopy(graph)
    (_to_fp16 if precision == "fp16" else _to_int8)(converted)
    checker.check_model(converted, full_check=True)
    return converted


def describe(graph: ModelProto, precision: Precision) -> tuple[str, ...]:
    """Notices for the user about a float32 graph at int8: which of its layers run in int8, and which stay in float32.

    Empty at other precisions.
    """
    if precision != "int8":
        return ()
    converted = deepcopy(graph)
    recurrent, products, float_layers = _convert_layers(converted.graph)
    sizes = [(tensor.data_type == TensorProto.INT8, math.prod(tensor.dims)) for tensor in converted.graph.initializer]
    int8_share = sum(size for is_int8, size in sizes if is_int8) / max(1, sum(size for _, size in sizes))
    counts = ((recurrent, "recurrent layer"), (products, "product"))
    parts = [f"{count} {layer}{'s' if count > 1 else ''}" for count, layer in counts if count]
    return (
        f"in int8: {' and '.join(parts)} with {int8_share:.0%} of all weights; the rest stays in float32",
        *(f"{layer} stays in float32: {reason}" for layer, reason in float_layers),
    )


def _to_fp16(model: ModelProto) -> None:
    """Converts a graph to float16, in place.

    Raises:
        ExportError: It has no layer that could run in float16.
    """
    converted = _HalfGraph(model).convert()
    if not converted:
        reason = "the graph has no recurrent layer, and no product with weights before its last, that could run in fp16"
        raise ExportError("precision", f"{reason}: export it in fp32")
    keep_needed(converted)
    model.graph.CopyFrom(converted)


class _HalfGraph:
    """The conversion of one graph to float16, node by node in execution order.

    A node that runs in float16 writes its outputs under new names. A Cast of each back to float32 follows, under the
    name before. So all other nodes are unchanged; the caller removes casts that no node uses.
    """

    def __init__(self, model: ModelProto) -> None:
        """Infers the element types of all values, and finds the layers that stay in float32."""
        self._graph = shape_inference.infer_shapes(model, check_type=True).graph
        self._constants = constants_of(self._graph)
        values = chain(self._graph.input, self._graph.value_info, self._graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {name: tensor.data_type for name, tensor in self._constants.items()}  # element types
        self._last_outputs = _last_products(self._graph, self._constants)
        self._writer = NodeWriter(all_names(self._graph) | self._types.keys(), "half_")
        self._halves: dict[str, str] = {}  # the name in float16 of each float32 value that has one
        self._nodes: list[NodeProto] = []  # those of the converted graph so far

    def convert(self) -> GraphProto | None:
        """Converts a copy of the graph, and returns it; None if no layer or product runs in float16."""
        has_layer = False
        for node in self._graph.node:
            if self._can_run_in_half(node):
                has_layer = has_layer or node.op_type in _RECURRENT | _PRODUCTS
                self._add_half(node)
            else:
                self._nodes.append(node)
        refill(self._graph.node, self._nodes)
        del self._graph.value_info[:]  # the types in it may be wrong now
        return self._graph if has_layer else None

    def _can_run_in_half(self, node: NodeProto) -> bool:
        """Whether a node can run in float16.

        It can if it is a recurrent layer, or a product with weights that is not the last before an output; or if all
        its inputs have a float16 value, and it only moves numbers, multiplies activations, or adds a bias.
        """
        names = [name for name in node.input if self._is_float(name)]
        weights = [name for name in names if name in self._constants]
        activations = [name for name in names if name not in self._constants]
        if node.domain not in OF_ONNX or not activations:
            return False
        # Masking constants and infinities are not in the range of float16
        if not all((np.abs(numpy_helper.to_array(self._constants[name])) <= LARGEST_HALF).all() for name in weights):
            return False
        if node.op_type in _RECURRENT:
            return True
        if node.op_type in _PRODUCTS and weights:
            return node.output[0] not in self._last_outputs
        # A bias can be added in float16, but the sum of two activations may overflow
        may_follow_halves = node.op_type in _MOVES or node.op_type == "MatMul" or (node.op_type == "Add" and weights)
        return bool(may_follow_halves) and all(name in self._halves for name in activations)

    def _add_half(self, node: NodeProto) -> None:
        """Adds a node in float16 to the converted graph, with casts before and after it; changes the node."""
        # Inputs that have no float16 value yet: constants are converted, others get a Cast
        for name in dict.fromkeys(filter(self._is_float, node.input)):
            if name in self._halves:
                continue
            self._halves[name] = self._writer.name(f"{name}_half")
            if name in self._constants:
                array = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(array, self._halves[name]))
            else:
                self._nodes.append(_cast(name, self._halves[name], TensorProto.FLOAT16))
        node.input[:] = [self._halves[name] if self._is_float(name) else name for name in node.input]
        self._nodes.append(node)
        # Outputs: a Cast back to float32 for the nodes that read them so
        for index, name in enumerate(node.output):
            if self._is_float(name):
                node.output[index] = self._halves[name] = self._writer.name(f"{name}_half")
                self._nodes.append(_cast(self._halves[name], name, TensorProto.FLOAT))

    def _is_float(self, name: str) -> bool:
        """Whether a value is float32."""
        return self._types.get(name) == TensorProto.FLOAT


def _to_int8(model: ModelProto) -> None:
    """Converts a graph to int8, in place.

    Raises:
        ExportError: It has no layer that could run in int8; the message says why.
    """
    recurrent, products, float_layers = _convert_layers(model.graph)
    if not recurrent + products:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in float_layers)
        layers = "no LSTM or GRU, and no large MatMul before its last, that could run in int8"
        in_brackets = f" ({reasons})" if reasons else ""
        raise ExportError("precision", f"the graph has {layers}{in_brackets}: export it in fp32, or in fp16 for GPUs")
    del model.graph.value_info[:]


def _convert_layers(graph: GraphProto) -> tuple[int, int, list[tuple[str, str]]]:
    """Converts the layers of a graph to int8, in place.

    Returns:
        The number of recurrent layers in int8; the number of products in int8; and for each recurrent layer that stays
        in float32 its name, such as `LSTM x`, and the reason.
    """
    constants = constants_of(graph)
    last, zeros = _last_products(graph, constants), _zeros(graph, constants)
    states = _copies(graph, {state.name for state in carried(graph)})
    nodes: list[NodeProto] = []
    recurrent, products, float_layers = 0, 0, [*_inner_layers(graph)]
    for node in graph.node:
        # A recurrent layer
        if node.op_type in _RECURRENT and node.domain in OF_ONNX:
            reason = _why_in_float32(node, constants, zeros | states)
            if reason is None:
                if not states.intersection(node.input):
                    del node.input[5:]  # initial states that are zeros
                nodes += _dequantise_layer(graph, node, constants)
                recurrent += 1
            else:
                float_layers.append((f"{node.op_type} {node.name or node.output[0]}", reason))
        # A product with weights
        elif _is_wide_product(node, constants) and node.output[0] not in last:
            stem = f"{node.name or node.output[0]}/weights"
            integers, scales = rounded(numpy_helper.to_array(constants[node.input[1]]).T)
            integers = np.ascontiguousarray(integers.T)  # `[inputs, outputs]`, as MatMul has them
            node.input[1] = f"{stem}_dequantized"
            nodes.append(_store_weights(graph, stem, integers, scales, node.input[1], f"{stem}_node", axis=1))
            products += 1
        nodes.append(node)
    # Remove the float32 weights that no node uses any more
    used = {*(value.name for value in graph.output), *names_in(nodes)}
    refill(graph.node, (node for node in nodes if node.op_type != "Constant" or used.intersection(node.output)))
    refill(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in used))
    return recurrent, products, float_layers


def rounded(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds weights `[outputs, inputs]` to int8 of at most `LARGEST_WEIGHT`, with a scale for each output `[outputs]`.

    A weight is about the integer times the scale of its output.
    """
    largest_weights = np.abs(weights).max(axis=1)
    scales = np.where(largest_weights > 0, largest_weights / LARGEST_WEIGHT, 1).astype(np.float32)
    return np.clip(np.rint(weights / scales[:, None]), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8), scales


_OTHER_CELLS: Final = frozenset({"activations", "activation_alpha", "activation_beta", "clip"})
"""Attributes of a recurrent node that change its computation; the integer kernels do not have them."""


def _why_in_float32(node: NodeProto, constants: Mapping[str, TensorProto], zeros: AbstractSet[str]) -> str | None:
    """Why a recurrent layer stays in float32; None if the integer kernels can run it.

    `zeros` are the names of tensors of zeros, and of states that come in: what a layer gave before is at most 1.
    """
    attributes = attributes_of(node)
    # The inputs of ONNX's operator; an empty name for one that the node does not have
    _, input_weights, state_weights, biases, _, state, cell, peepholes, *_ = [*node.input, *[""] * 8]
    weights = [input_weights, state_weights, *filter(None, [biases])]
    is_computed = not all(name in constants for name in weights)
    is_early = node.op_type == "GRU" and not attributes.get("linear_before_reset")
    arrays = [] if is_computed else [numpy_helper.to_array(constants[name]) for name in (input_weights, state_weights)]
    reasons = (
        (node.op_type == "RNN", "there are integer kernels for LSTM and GRU only"),
        (bool(peepholes), "it has peepholes"),
        (
            any(name and name not in zeros for name in (state, cell)),
            "it begins with states of its own, maybe larger than 1",
        ),
        (bool(attributes.keys() & _OTHER_CELLS), "it has other activations, or a clip"),
        (bool(attributes.get("input_forget")), "its input and forget gates are coupled"),
        (bool(attributes.get("layout")), "its rows come before its steps"),
        (is_early, "its reset gate comes before the product (linear_before_reset = 0)"),
        (is_computed, "its weights are computed"),
        (
            not all(array.dtype == np.float32 and array.ndim == 3 and np.isfinite(array).all() for array in arrays),
            "its weights are not finite float32 numbers",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _store_weights(
    graph: GraphProto,
    stem: str,
    integers: NDArray[np.int8],
    scales: NDArray[np.float32],
    output: str,
    name: str,
    axis: int,
) -> NodeProto:
    """Adds int8 weights and their scales to a graph, and returns the node that dequantises them.

    Args:
        graph: The graph, which gets two initializers.
        stem: What their names begin with.
        integers: The weights in int8.
        scales: A scale for each index of the axis `axis`.
        output: The name of the weights in float32 that the node gives.
        name: The name of the node.
        axis: The axis of the outputs of the layer.
    """
    for part, values in (("int8", integers), ("scale", scales)):
        graph.initializer.append(numpy_helper.from_array(values, f"{stem}_{part}"))
    return helper.make_node("DequantizeLinear", [f"{stem}_int8", f"{stem}_scale"], [output], name, axis=axis)


def _dequantise_layer(graph: GraphProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[NodeProto]:
    """Adds a recurrent layer's weights in int8 to the graph, and yields the nodes that dequantise them.

    Weights of few inputs stay in float32, but become an initializer. Changes the layer: it reads the outputs of the
    nodes.

    Args:
        graph: The graph, which gets initializers.
        node: The layer.
        constants: The constants of the graph, by name.
    """
    for index, name in ((1, "W"), (2, "R")):
        weights = numpy_helper.to_array(constants[node.input[index]])
        stem = f"{node.name or node.output[0]}/{name}"
        if index == 1 and weights.shape[2] < FEW_INPUTS:
            if node.input[1] not in {tensor.name for tensor in graph.initializer}:
                graph.initializer.append(numpy_helper.from_array(weights, f"{stem}_float32"))
                node.input[1] = f"{stem}_float32"
            continue
        integers, scales = rounded(weights.reshape(-1, weights.shape[2]))
        output = f"{stem}_dequantized"
        yield _store_weights(graph, stem, integers, scales, f"{stem}_flat", f"{stem}_flat_node", axis=0)
        graph.initializer.append(numpy_helper.from_array(np.array(weights.shape, np.int64), f"{stem}_shape"))
        yield helper.make_node("Reshape", [f"{stem}_flat", f"{stem}_shape"], [output], f"{output}_node")
        node.input[index] = output


def _is_wide_product(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a MatMul with a constant float32 matrix that is large enough to be faster in int8."""
    if node.op_type != "MatMul" or node.domain not in OF_ONNX or node.input[1] not in constants:
        return False
    weights = numpy_helper.to_array(constants[node.input[1]])
    is_wide = weights.ndim == 2 and min(weights.shape) >= FEW_INPUTS
    return is_wide and weights.dtype == np.float32 and bool(np.isfinite(weights).all())


def _zeros(graph: GraphProto, constants: Mapping[str, TensorProto]) -> set[str]:
    """The names of the values of a graph that are all zeros, such as the initial states that torch.onnx writes."""
    zeros = {name for name, tensor in constants.items() if not numpy_helper.to_array(tensor).any()}
    for node in graph.node:
        fill_values = [numpy_helper.to_array(attribute.t) for attribute in node.attribute if attribute.HasField("t")]
        if node.op_type == "ConstantOfShape" and not any(value.any() for value in fill_values):
            zeros.update(node.output)
    return _copies(graph, zeros)


def _copies(graph: GraphProto, names: set[str]) -> set[str]:
    """The names of these values, and of those that only have their elements in another form."""
    names = set(names)
    for node in graph.node:
        if node.op_type in _KEEP_ZEROS and node.input[0] in names:
            names.update(node.output)
    return names


def _inner_layers(graph: GraphProto) -> Iterator[tuple[str, str]]:
    """Yields the recurrent layers of the graphs inside nodes: the name of each, and the reason why it is in float32."""
    for node in graph.node:
        for inner in graphs_in(node):
            for inner_node in inner.node:
                if inner_node.op_type in _RECURRENT:
                    yield (
                        f"{inner_node.op_type} {inner_node.name or inner_node.output[0]}",
                        f"it is inside a {node.op_type}",
                    )
            yield from _inner_layers(inner)


def _last_products(graph: GraphProto, constants: Mapping[str, TensorProto]) -> frozenset[str]:
    """The names of the outputs of the last products with weights before the graph's outputs.

    They stay in float32: their rounding would be the answer's. The search is from the outputs back, and ends at these
    products and at recurrent layers.
    """
    reached = {value.name for value in graph.output}  # values from which an output is computed without such a node
    last_outputs = set()
    for node in reversed(graph.node):
        if not reached.intersection(node.output):
            continue
        if node.op_type in _PRODUCTS and any(name in constants for name in node.input):
            last_outputs.add(node.output[0])
        elif node.op_type not in _RECURRENT:
            reached.update(filter(None, node.input))
    return frozenset(last_outputs)


def _cast(name: str, output: str, element: int) -> NodeProto:
    """A node that casts the value `name` to the element type `element`, as the value `output`."""
    return helper.make_node("Cast", [name], [output], name=f"{output}_cast", to=element)
