"""Converts a verified float32 graph to fp16 or int8. Inputs and outputs keep their types.

fp16: LSTM, GRU, RNN and products with weights run in float16, and nodes between two of them that only move numbers or
keep them small. Masks, normalisation, sums, softmax and the last product before an output stay in float32: no masking
constant is rounded (onnxruntime's own converter clamps them to -65504), no length above 2048 is miscounted, and no sum
overflows. The CPU computes most of these nodes in float32, with weights rounded to float16.

int8: see `integer_layers`. Nothing depends on other rows, so batches and widths are those of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper, shape_inference
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps, pad
from lengthwise.runtime import answers
from lengthwise.runtime.manifest import Manifest, Precision
from lengthwise.runtime.session import Session
from lengthwise_export.errors import ExportError
from lengthwise_export.onnx_graphs import integer_layers
from lengthwise_export.onnx_graphs.protos import OF_ONNX, constants_of, refill

LARGEST_HALF: Final = float(np.finfo(np.float16).max)

_RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})
_MOVES: Final = frozenset(
    {"Concat", "Expand", "Flatten", "Identity", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Tanh"}
    | {"Transpose", "Unsqueeze", "Where"}
)
"""Operators whose outputs are not larger than their inputs, or are bounded."""


def manifest_at(manifest: Manifest, precision: Precision) -> Manifest:
    """The manifest of the same model at another precision.

    At int8, `missing: "handled"` becomes `refuse`: the integer kernels answer NaN to a NaN. (The built-in layers
    replace NaN before that.)
    """
    refuses = precision == "int8" and manifest.missing == "handled"
    return manifest.model_copy(update={"precision": precision, **({"missing": "refuse"} if refuses else {})})


def convert(graph: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Converts a float32 graph; inputs and outputs stay the same."""
    if precision == "fp32":
        return graph
    converted = (_to_fp16 if precision == "fp16" else _to_int8)(deepcopy(graph))
    onnx.checker.check_model(converted, full_check=True)
    return converted


def described(graph: onnx.ModelProto, precision: Precision) -> tuple[str, ...]:
    """Says what of a float32 graph runs in integers at int8, and what stays in float32; nothing at other precisions."""
    if precision != "int8":
        return ()
    converted = deepcopy(graph)
    layers = _convert_layers(converted.graph)
    sizes = [(tensor.data_type == TensorProto.INT8, math.prod(tensor.dims)) for tensor in converted.graph.initializer]
    share = sum(size for is_int8, size in sizes if is_int8) / max(1, sum(size for _, size in sizes))
    counts = ((layers.recurrent, "recurrent layer"), (layers.products, "product"))
    parts = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count]
    return (
        f"in int8: {' and '.join(parts)} with {share:.0%} of all weights; the rest stays in float32",
        *(f"{layer} stays in float32: {layer.reason}" for layer in layers.left),
    )


def _convert_layers(graph: onnx.GraphProto) -> integer_layers.Int8Layers:
    constants = constants_of(graph)
    return integer_layers.convert(graph, constants, _last_products(graph, constants))


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    converted = _HalfGraph(model).convert()
    if not converted:
        none = "the graph has no recurrent layer, and no product with weights before its last, that could run in fp16"
        raise ExportError("precision", f"{none}: export it in fp32")
    model.graph.CopyFrom(converted)
    tidy = ir.from_proto(model)
    RemoveUnusedNodesPass()(tidy)
    return ir.to_proto(tidy)


class _HalfGraph:
    """The conversion of one graph to float16, node by node in execution order.

    A node that runs in float16 writes its outputs under new names. A Cast to float32 under the old name follows each,
    so all other nodes are unchanged. Casts that no node uses are removed at the end.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = shape_inference.infer_shapes(model, check_type=True).graph
        self._constants = constants_of(self._graph)
        values = chain(self._graph.input, self._graph.value_info, self._graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {name: tensor.data_type for name, tensor in self._constants.items()}
        self._last = _last_products(self._graph, self._constants)
        self._names = set(self._types) | {name for node in self._graph.node for name in (*node.input, *node.output)}
        # The float16 name of each float32 value that has one.
        self._halves: dict[str, str] = {}
        self._nodes: list[NodeProto] = []

    def convert(self) -> onnx.GraphProto | None:
        products = 0
        for node in self._graph.node:
            if self._can_run_in_half(node):
                products += node.op_type in _RECURRENT | _PRODUCTS
                self._add_half(node)
            else:
                self._nodes.append(node)
        refill(self._graph.node, self._nodes)
        del self._graph.value_info[:]  # the types in it may be wrong now
        return self._graph if products else None

    def _can_run_in_half(self, node: NodeProto) -> bool:
        names = self._float_inputs(node)
        weights = [name for name in names if name in self._constants]
        activations = [name for name in names if name not in self._constants]
        if node.domain not in OF_ONNX or not activations:
            return False
        # Masking constants and infinities are not in the range of float16.
        if not all((np.abs(numpy_helper.to_array(self._constants[name])) <= LARGEST_HALF).all() for name in weights):
            return False
        if node.op_type in _RECURRENT:
            return True
        if node.op_type in _PRODUCTS and weights:
            return node.output[0] not in self._last
        # Adding a bias to a product is safe, but the sum of two activations may overflow.
        follows = node.op_type in _MOVES or node.op_type == "MatMul" or (node.op_type == "Add" and weights)
        return bool(follows) and all(name in self._halves for name in activations)

    def _add_half(self, node: NodeProto) -> None:
        for name in dict.fromkeys(self._float_inputs(node)):
            if name not in self._halves:
                self._add_half_input(name)
        node.input[:] = [self._halves[name] if self._is_float(name) else name for name in node.input]
        self._nodes.append(node)
        for index, name in enumerate(node.output):
            if self._is_float(name):
                node.output[index] = self._halves[name] = self._half_name(name)
                self._nodes.append(_cast(self._halves[name], name, TensorProto.FLOAT))

    def _add_half_input(self, name: str) -> None:
        """Adds the float16 form of a value: an initializer for a constant, otherwise a Cast."""
        self._halves[name] = self._half_name(name)
        if name in self._constants:
            array = numpy_helper.to_array(self._constants[name]).astype(np.float16)
            self._graph.initializer.append(numpy_helper.from_array(array, self._halves[name]))
        else:
            self._nodes.append(_cast(name, self._halves[name], TensorProto.FLOAT16))

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == TensorProto.FLOAT

    def _float_inputs(self, node: NodeProto) -> list[str]:
        return [name for name in node.input if self._is_float(name)]

    def _half_name(self, name: str) -> str:
        half = f"{name}_half"
        while half in self._names:
            half += "_"
        self._names.add(half)
        return half


def _to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    layers = _convert_layers(model.graph)
    if not layers.recurrent + layers.products:
        why = "; ".join(f"{layer}: {layer.reason}" for layer in layers.left)
        none = (
            f"no LSTM or GRU, and no large MatMul before its last, that could run in int8{f' ({why})' if why else ''}"
        )
        raise ExportError("precision", f"the graph has {none}: export it in fp32, or in fp16 for GPUs")
    del model.graph.value_info[:]
    return model


def _last_products(graph: onnx.GraphProto, constants: Mapping[str, TensorProto]) -> frozenset[str]:
    """The outputs of the last weighted products before the graph's outputs: their rounding would be the answer's."""
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


def _cast(name: str, into: str, element: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [name], [into], name=f"{into}_cast", to=element)


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """The difference between the answers of two graphs."""

    sequences: int  # The number of sequences that both answered
    changed: int  # The number of sequences with another label or other labels; of a per-step model, at any step
    difference: float  # The largest absolute difference of a logit

    def __str__(self) -> str:
        """`2 of 370 labels changed`."""
        return f"{self.changed} of {self.sequences} labels changed"


def compare(
    before: Session, manifest_before: Manifest, after: Session, manifest_after: Manifest, sequences: Iterable[Steps]
) -> LabelChanges:
    """Runs each sequence that the model accepts unbatched through both graphs, and compares the answers."""
    count, changed, largest = 0, 0, 0.0
    least, most = manifest_before.min_length, manifest_before.max_length
    for steps in sequences:
        if not least <= len(steps) <= most:
            continue
        one, other = _logits(before, manifest_before, steps), _logits(after, manifest_after, steps)
        count += 1
        changed += not np.array_equal(_label(one, manifest_before), _label(other, manifest_after))
        largest = max(largest, float(np.abs(one - other).max()))
    if not count:
        accepted = f"{most} steps or fewer" if least == 1 else f"{least} to {most} steps"
        raise ConfigurationError(f"no sequence of the data has {accepted}")
    return LabelChanges(count, changed, largest)


def _logits(session: Session, manifest: Manifest, steps: Steps) -> NDArray[np.float32]:
    """`[classes]`, or of a per-step model `[length, classes]`."""
    row: NDArray[np.float32] = session.run(pad([steps], multiple=manifest.width_multiple)).logits[0]
    return row[: len(steps)] if manifest.task == "per-step" else row


def _label(logits: NDArray[np.float32], manifest: Manifest) -> NDArray[np.bool_] | NDArray[np.intp]:
    """The class, the class of each step, or for a multi-label model which classes are assigned."""
    if manifest.task == "multi-label":
        assigned: NDArray[np.bool_] = answers.probabilities(logits, manifest) >= manifest.threshold
        return assigned
    classes: NDArray[np.intp] = logits.argmax(axis=-1, keepdims=True)
    return classes
