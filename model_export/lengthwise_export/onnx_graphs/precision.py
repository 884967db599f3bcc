"""A proved float32 graph at another precision: the same answers but for rounding, and how many rows may run together.

    float32 graph --fp16--> weighted products in float16, everything that decides what is padding in float32
                  --int8--> weights and activations of weighted products in 8 bits, one row at a time

fp16: LSTM, GRU and RNN, and products with weights (MatMul, Gemm, Conv), run in float16; so does what stands between two
of them and only moves numbers or keeps them small. Masks, normalisation, sums, softmax and the last product before an
output stay in float32: no masking constant is rounded, no length past 2048 miscounted, no sum overflows. Inputs and
outputs keep their types. (onnxruntime's own converter takes whole graphs to float16, clamps the masking constants to
-65504 and passes the values on through float16 between two nodes that it leaves in float32.) The CPU has no float16
kernels for most of this: onnxruntime computes there in float32, with the weights as float16 rounded them.

int8: onnxruntime's dynamic quantisation of LSTM and of products with weights. A node's activations share one scale,
taken from the whole batch: a neighbour or padding that holds larger numbers coarsens everybody's. So the manifest lets
one row run at a time and rounds no width up: no company, no padding, and a sequence's answer is its own. Weights get
seven bits of the eight, as processors without VNNI add two products in 16 bits, which eight would overflow.
onnxruntime quantises no GRU; a graph with one is refused, as one row at a time would cost more than it saves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx import NodeProto, TensorProto, numpy_helper, shape_inference
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lengthwise.runtime.manifest import Manifest, Precision
from lengthwise_export.errors import ExportError

LARGEST_HALF: Final = float(np.finfo(np.float16).max)

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})
_MOVES: Final = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Split",
        "Squeeze",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""What gives no number larger than it got, and rounds at most a bounded one."""


def manifest_at(manifest: Manifest, precision: Precision) -> Manifest:
    """The manifest of the same model at that precision.

    A graph of which the caller says that it takes NaN itself is not given any at int8: a NaN that reaches a quantised
    layer spoils the scale of all its activations. What the built-in layers put in its place never gets there.
    """
    changed: dict[str, object] = {"precision": precision}
    if precision == "int8":
        changed |= {"max_batch_rows": 1, "width_multiple": 1}
        if manifest.missing == "handled":
            changed["missing"] = "refuse"
    return manifest.model_copy(update=changed)


def convert(graph: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A float32 graph at that precision, under the same inputs and outputs.

    Raises:
        ExportError: It has nothing that would run at that precision, or a layer that cannot; names it.
    """
    if precision == "fp32":
        return graph
    taken = onnx.ModelProto()
    taken.CopyFrom(graph)
    found = _in_half(taken) if precision == "fp16" else _in_eight_bits(taken)
    onnx.checker.check_model(found, full_check=True)
    return found


def _in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weighted products in float16.

    A node that runs in float16 gives its outputs under new names, with a Cast to float32 behind each under the old one:
    whoever asks for the old name is served, and a Cast that nobody asks for is dropped.
    """
    graph = shape_inference.infer_shapes(model, check_type=True).graph
    elements = {value.name: value.type.tensor_type.elem_type for value in chain(graph.input, graph.value_info)}
    elements |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
    constants = _constants(graph)
    elements |= {name: tensor.data_type for name, tensor in constants.items()}
    last = _last_products(graph, constants)
    taken = set(elements) | {name for node in graph.node for name in (*node.input, *node.output)}
    halves: dict[str, str] = {}

    def float_inputs(node: NodeProto) -> list[str]:
        return [name for name in node.input if elements.get(name) == TensorProto.FLOAT]

    def runs_in_half(node: NodeProto) -> bool:
        names = float_inputs(node)
        weights = [name for name in names if name in constants]
        given = [name for name in names if name not in constants]
        if node.domain not in ("", "ai.onnx") or not given or not all(_fits_half(constants[name]) for name in weights):
            return False
        if node.op_type in _RECURRENT:
            return True
        if node.op_type in _PRODUCTS and weights:
            return node.output[0] not in last
        # A bias is added to what a product gave; a sum of two activations has no such bound.
        follows = node.op_type in _MOVES or node.op_type == "MatMul" or (node.op_type == "Add" and weights)
        return bool(follows) and all(name in halves for name in given)

    def half_name(name: str) -> str:
        found = f"{name}_half"
        while found in taken:
            found += "_"
        taken.add(found)
        return found

    nodes: list[NodeProto] = []
    products = 0
    for node in graph.node:
        if not runs_in_half(node):
            nodes.append(node)
            continue
        products += node.op_type in _RECURRENT | _PRODUCTS
        for name in dict.fromkeys(float_inputs(node)):
            if name in halves:
                continue
            halves[name] = half_name(name)
            if name in constants:
                array = numpy_helper.to_array(constants[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(array, halves[name]))
            else:
                nodes.append(_cast(name, halves[name], TensorProto.FLOAT16))
        node.input[:] = [halves[name] if elements.get(name) == TensorProto.FLOAT else name for name in node.input]
        nodes.append(node)
        for place, name in enumerate(node.output):
            if elements.get(name) == TensorProto.FLOAT:
                halves[name] = half_name(name)
                node.output[place] = halves[name]
                nodes.append(_cast(halves[name], name, TensorProto.FLOAT))
    if not products:
        raise ExportError(
            "precision",
            "the graph has no recurrent layer, and no product with weights before its last, that could run in fp16: "
            "export it in fp32",
        )
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # of float32, where the values may be float16 now
    model.graph.CopyFrom(graph)
    tidy = ir.from_proto(model)
    RemoveUnusedNodesPass()(tidy)
    return ir.to_proto(tidy)


def _in_eight_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weighted products quantised dynamically."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # sympy and more, for int8 alone
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    unfit = [node for node in model.graph.node if node.op_type in ("GRU", "RNN")]
    if unfit:
        raise ExportError(
            "precision",
            f"onnxruntime quantises no {unfit[0].op_type}, as node {unfit[0].name or unfit[0].output[0]} is: export it "
            "in fp32 or fp16, or build the model of LSTM layers",
        )
    last = _last_products(model.graph, _constants(model.graph))
    for node in model.graph.node:
        node.name = node.name or f"node giving {node.output[0]}"  # what is left out is left out by its name
    spared = [node.name for node in model.graph.node if node.output[0] in last]
    spared += [f"{name}_MatMul" for name in spared]  # what a Gemm becomes, beside an Add, before anything is left out
    _untie(model.graph)
    # Shapes are inferred anew: what the exporter noted of a Gemm's weights does not hold for the MatMul it becomes.
    del model.graph.value_info[:]
    told = {entry.key: entry.value for entry in model.metadata_props}
    add_pre_process_metadata(model)  # else it advises, in the log, to optimise the graph first
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["LSTM", "MatMul"],
            nodes_to_exclude=spared,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        found = onnx.load(path)
    onnx.helper.set_model_props(found, told)
    if not any(node.op_type in ("DynamicQuantizeLSTM", "MatMulInteger") for node in found.graph.node):
        raise ExportError(
            "precision", "the graph has no LSTM and no product with weights to quantise: export it in fp32"
        )
    return found


def _untie(graph: onnx.GraphProto) -> None:
    """Gives each Gemm and LSTM weights of its own: onnxruntime turns them round in place, once for every node."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    owned: set[str] = set()
    for node in graph.node:
        for place in {"Gemm": (1,), "LSTM": (1, 2)}.get(node.op_type, ()):
            tensor = weights.get(node.input[place])
            if tensor is None:
                continue
            if tensor.name in owned:
                copied = graph.initializer.add()
                copied.CopyFrom(tensor)
                copied.name = node.input[place] = f"{tensor.name} of {node.name}"
            owned.add(tensor.name)


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The values that are no input and no output of a computation: initializers, and what Constant nodes give."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    return held


def _last_products(graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> frozenset[str]:
    """What the products with weights give behind which no other comes: their rounding would be the answer's."""
    producers = {name: node for node in graph.node for name in node.output if name}
    waiting = [value.name for value in graph.output]
    seen: set[str] = set()
    last = set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in _PRODUCTS and any(each in constants for each in node.input):
            last.add(node.output[0])
        elif node.op_type not in _RECURRENT:
            waiting.extend(node.input)
    return frozenset(last)


def _fits_half(tensor: TensorProto) -> bool:
    """Whether float16 holds every number of it, rounded: a masking constant or an infinity does not."""
    return bool((np.abs(numpy_helper.to_array(tensor)) <= LARGEST_HALF).all())


def _cast(name: str, into: str, element: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [name], [into], name=f"{into}_cast", to=element)
