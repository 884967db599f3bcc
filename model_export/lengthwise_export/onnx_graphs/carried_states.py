"""Graphs that take and give states: an input NAME and an output NAME_next, for what a row carries to its next steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from lengthwise_export.onnx_graphs.protos import NodeWriter, all_names, keep_needed, refill

NEXT = "_next"  # what the output of a state is named, after its input


def carried(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs of a graph that are states."""
    outputs = {value.name for value in graph.output}
    return [value for value in graph.input if value.name + NEXT in outputs]


def begun(model: ModelProto, initial: Mapping[str, float]) -> ModelProto:
    """The graph whose states begin with these numbers, by their names; with 0 where none is named.

    It takes the other inputs alone. An axis of a state without a size is that of the rows.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    states = carried(copy.graph)
    others = [value for value in copy.graph.input if value not in states]
    writer = NodeWriter(all_names(copy.graph), "begun_")
    per_row = min(others, key=lambda value: len(value.type.tensor_type.shape.dim))  # the lengths, or the first input
    rows = writer.emit("Shape", [per_row.name], start=0, end=1)
    for state in states:
        kind = state.type.tensor_type
        dims = [writer.constant([dim.dim_value]) if dim.dim_value else rows for dim in kind.shape.dim]
        shape = writer.emit("Concat", dims, axis=0)
        number = np.array(initial.get(state.name, 0), helper.tensor_dtype_to_np_dtype(kind.elem_type))
        writer.nodes.append(helper.make_node("Expand", [writer.constant(number, number.dtype), shape], [state.name]))
    copy.graph.initializer.extend(writer.constants)
    refill(copy.graph.node, [*writer.nodes, *copy.graph.node])
    refill(copy.graph.input, others)
    return copy


def answering(model: ModelProto, logits: str, *, without: str | None = None) -> ModelProto:
    """The graph with one output: the answers `[rows, classes]`, followed by what its states become.

    Args:
        model: The graph.
        logits: The name of the output with its answers.
        without: A state that is left out.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    writer, parts = NodeWriter(all_names(copy.graph), "joined_"), [logits]
    for value in copy.graph.output:
        if value.name.endswith(NEXT) and value.name != f"{without}{NEXT}":
            dims = [*value.type.tensor_type.shape.dim]
            rows = next((axis for axis, dim in enumerate(dims) if not dim.dim_value), 0)
            name = writer.transposed(value.name, [rows, *(axis for axis in range(len(dims)) if axis != rows)])
            parts.append(writer.emit("Cast", [writer.emit("Flatten", [name])], to=TensorProto.FLOAT))
    joined = writer.emit("Concat", parts, axis=1)
    copy.graph.node.extend(writer.nodes)
    refill(copy.graph.output, [helper.make_tensor_value_info(joined, TensorProto.FLOAT, ["rows", None])])
    keep_needed(copy.graph)
    return copy
