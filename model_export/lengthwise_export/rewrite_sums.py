"""`export --rewrite`: replaces sums over the steps by matrix products, whose bits do not depend on the batch.

onnxruntime's ReduceSum adds in an order that depends on the width. A matrix product with ones adds the same numbers,
and at widths that are multiples of four its order is the same batched and unbatched (measured; see
`lengthwise.padding`). The rewrite changes answers once, by rounding. After that they are the same bits in every batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from lengthwise.padding import pad
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.session import Session
from lengthwise.verification import measurement, promises
from lengthwise.verification.promises import ROUNDING
from lengthwise_export.candidate import Candidate
from lengthwise_export.checking import axes
from lengthwise_export.checking.trials import Sampler

Say = Callable[[str], None]

_LOWEST_OPSET: Final = 15
"""The first opset in which Shape can return a single axis."""


def with_sums_rewritten(source: Candidate, say: Say) -> Candidate:
    """The same candidate; its graph is rewritten if that makes the bits independent of the batch.

    Args:
        source: A user's model.
        say: Called with what was done, or why nothing was rewritten.
    """

    def build(named: Manifest) -> onnx.ModelProto:
        proto = source.build(named)
        if keeps_bits(proto, named):
            say("nothing rewritten: the graph already gives the same bits batched and unbatched")
            return proto
        changed, sums = with_sums_as_products(proto)
        if not sums:
            say("nothing rewritten: the graph has no ReduceSum over the steps")
            return proto
        moved = largest_difference(proto, changed, named)
        if moved > ROUNDING:
            say(f"nothing rewritten: it would change an answer by {moved:.2g}, more than rounding")
            return proto
        if not keeps_bits(changed, named):
            say(f"nothing rewritten: with {', '.join(sums)} as matrix products, bits still depend on the batch")
            return proto
        say(f"rewritten as matrix products with ones: {', '.join(sums)}; this changed answers by {moved:.2g}, once")
        return changed

    return dataclasses.replace(source, build=build)


def with_sums_as_products(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Replaces each float sum over one dynamic axis by a matrix product with ones.

    Returns:
        The graph, and the names of the replaced nodes.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    if model.opset_imports.get("", 0) < _LOWEST_OPSET:
        return proto, []
    replaced = []
    for node in list(model.graph):
        if node.op_type != "ReduceSum" or node.domain not in ("", "ai.onnx"):
            continue
        product = _as_product(node)
        if product is None:
            continue
        replaced.append(node.name or f"ReduceSum giving {node.outputs[0].name}")
        output, old = product[-1].outputs[0], node.outputs[0]
        output.shape, output.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], product, [old], [output])
    return ir.to_proto(model), replaced


def _as_product(node: ir.Node) -> list[ir.Node] | None:
    """The nodes that compute a sum as a matrix product; None if the sum is not over one dynamic axis."""
    values, axis = node.inputs[0], _single_axis(node)
    if values is None or axis is None or values.shape is None or values.dtype != ir.DataType.FLOAT:
        return None
    rank, keeps = len(values.shape), node.attributes.get_int("keepdims", 1)
    axis %= rank
    if isinstance(values.shape[axis], int):
        return None
    nodes: list[ir.Node] = []
    if rank == 3 and axis == 0 and not keeps:
        # Time-first: [width, rows, features]; transposed to rows first.
        nodes.append(ir.node("Transpose", [values], attributes={"perm": [1, 0, 2]}))
        values, axis = nodes[-1].outputs[0], 1
    if axis == 0 or axis < rank - 2:
        return None
    # A row of ones times [.., steps, features], or [.., features, steps] times a column of ones.
    size = ir.node("Shape", [values], attributes={"start": axis, "end": axis + 1})
    one = _constant([1])
    behind = axis == rank - 1
    parts = [size.outputs[0], one.outputs[0]]
    shape = ir.node("Concat", parts if behind else parts[::-1], attributes={"axis": 0})
    ones = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": ir.tensor(np.ones(1, np.float32))})
    factors = [values, ones.outputs[0]]
    product = ir.node("MatMul", factors if behind else factors[::-1])
    nodes += [size, one, shape, ones, product]
    if not keeps:
        where = _constant([axis])
        nodes += [where, ir.node("Squeeze", [product.outputs[0], where.outputs[0]])]
    return nodes


def _single_axis(node: ir.Node) -> int | None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    axes_value = ir.convenience.get_const_tensor(node.inputs[1])
    if axes_value is None or axes_value.size != 1:
        return None
    return int(axes_value.numpy().item())


def _constant(numbers: list[int]) -> ir.Node:
    return ir.node("Constant", [], attributes={"value": ir.tensor(np.array(numbers, dtype=np.int64))})


def keeps_bits(proto: onnx.ModelProto, manifest: Manifest) -> bool:
    """Whether a sequence gets the same bits batched and unbatched."""
    graph = proto.SerializeToString()
    cases = measurement.measure_cases(lambda threads: Session(graph, manifest, threads=threads), manifest, None)
    return promises.promise(cases).bits


def largest_difference(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> float:
    """The largest difference between the two graphs' answers to unbatched sequences of several lengths."""
    sessions = [Session(graph.SerializeToString(), manifest) for graph in (before, after)]
    sampler = Sampler(manifest.input, seed=0)
    apart = []
    for length in (1, 3, 8, 21, 55):
        steps = sampler.sequence(max(min(length, manifest.max_length), manifest.min_length))
        batch = pad([steps], multiple=manifest.width_multiple)
        apart.append(axes.gap(*(session.run(batch).logits for session in sessions)))
    return max(apart)
