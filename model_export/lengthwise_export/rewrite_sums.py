"""Rewrites a sum over the steps so that company changes no bit of it, where a graph's user asks for that.

onnxruntime's ReduceSum adds in an order that depends on the width. A matrix product with ones adds the same numbers,
and at widths rounded up to a multiple of four its order is the same alone and in company (measured; see
`lengthwise.padding`). The answers move by rounding, once; from then on they are the same bits in every batch.
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
from lengthwise.verification import promises, proof
from lengthwise_export.candidate import Candidate
from lengthwise_export.checking import axes
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.checking.verdict import ROUNDING

Say = Callable[[str], None]

_LOWEST_OPSET: Final = 15
"""The first in which Shape gives one axis alone."""


def with_sums_rewritten(source: Candidate, say: Say) -> Candidate:
    """The same source, with its graph rewritten where that gives the same bits alone and in company.

    Args:
        source: A user's model.
        say: Told what was done, or why nothing was.
    """

    def build(named: Manifest) -> onnx.ModelProto:
        proto = source.build(named)
        if _gives_bits(proto, named):
            say("nothing rewritten: the graph gives the same bits alone and in company as it stands")
            return proto
        changed, sums = with_sums_as_products(proto)
        if not sums:
            say("nothing rewritten: the graph has no ReduceSum over the steps")
            return proto
        moved = _moved_by(proto, changed, named)
        if moved > ROUNDING:
            say(f"nothing rewritten: it would move an answer by {moved:.2g}, more than rounding")
            return proto
        if not _gives_bits(changed, named):
            say(f"nothing rewritten: with {', '.join(sums)} as matrix products company still moves bits")
            return proto
        say(f"rewritten as matrix products with ones: {', '.join(sums)}; that moved the answers by {moved:.2g}, once")
        return changed

    return dataclasses.replace(source, build=build)


def with_sums_as_products(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A graph whose float sums over one open axis are matrix products with ones.

    Returns:
        The graph, and the names of the nodes that were replaced.
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
    """The nodes that compute a sum as a matrix product; None for a sum that is none over an open axis."""
    values, axis = node.inputs[0], _single_axis(node)
    if values is None or axis is None or values.shape is None or values.dtype != ir.DataType.FLOAT:
        return None
    rank, keeps = len(values.shape), node.attributes.get_int("keepdims", 1)
    axis %= rank
    if isinstance(values.shape[axis], int):
        return None
    nodes: list[ir.Node] = []
    if rank == 3 and axis == 0 and not keeps:
        # Steps first: [width, rows, features], with rows first from here on.
        nodes.append(ir.node("Transpose", [values], attributes={"perm": [1, 0, 2]}))
        values, axis = nodes[-1].outputs[0], 1
    if axis == 0 or axis < rank - 2:
        return None
    # A row of ones before [.., steps, features], or a column of them behind [.., features, steps].
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


def _gives_bits(proto: onnx.ModelProto, manifest: Manifest) -> bool:
    graph = proto.SerializeToString()
    cases = proof.verify(lambda threads: Session(graph, manifest, threads=threads), manifest, None)
    return promises.promise(cases).bits


def _moved_by(before: onnx.ModelProto, after: onnx.ModelProto, manifest: Manifest) -> float:
    """How far the answers to sequences of many lengths lie apart, each alone."""
    sessions = [Session(graph.SerializeToString(), manifest) for graph in (before, after)]
    sampler = Sampler(manifest.input, seed=0)
    apart = []
    for length in (1, 3, 8, 21, 55):
        batch = pad([sampler.sequence(min(length, manifest.max_length))], multiple=manifest.width_multiple)
        apart.append(axes.gap(*(session.run(batch).logits for session in sessions)))
    return max(apart)
