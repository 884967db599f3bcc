"""`median`, `kthvalue` and a stable `sort` in ONNX, for which the exporter has no translation, and ties in sorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import onnx
import torch
from onnxscript import ir, opset18

from lengthwise_export.tracing.node_origins import is_translation_of, location_of_node

# As in `recurrent_op`: during an export its operators take and return `ir.Value`s.
op: Final[Any] = opset18

_TIES: Final = "lengthwise.ties"


def _in_order(values: ir.Value, axis: int, count: ir.Value) -> tuple[Any, Any]:
    """The smallest values along an axis, in order, and their places."""
    return op.TopK(values, count, axis=axis, largest=0, sorted=1)  # type: ignore[no-any-return]


def _one_of(
    values: ir.Value, axis: int, count: ir.Value, place: ir.Value, *, keepdim: bool
) -> tuple[ir.Value, ir.Value]:
    ordered, places = _in_order(values, axis, count)
    where = op.Constant(value_ints=[axis])
    one, at = (op.Gather(each, place, axis=axis) for each in (ordered, places))
    return (one, at) if keepdim else (op.Squeeze(one, where), op.Squeeze(at, where))


def _median(values: ir.Value, dim: int, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    """`aten.median.dim`: of an even number of values the lower one in the middle."""
    rank = len(values.shape or ())
    axis = dim % rank
    size = op.Shape(values, start=axis, end=axis + 1)
    one, two = (op.Constant(value_ints=[number]) for number in (1, 2))
    return _one_of(values, axis, size, op.Div(op.Sub(size, one), two), keepdim=keepdim)


def _kth_value(values: ir.Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    """`aten.kthvalue`: the k-th smallest."""
    count, last = op.Constant(value_ints=[k]), op.Constant(value_ints=[k - 1])
    return _one_of(values, dim % len(values.shape or ()), count, last, keepdim=keepdim)


def _stable_sort(
    values: ir.Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[ir.Value, ir.Value]:
    """`aten.sort.stable`: of equal values TopK takes the first one first, whether the largest or the smallest lead."""
    axis = dim % len(values.shape or ())
    size = op.Shape(values, start=axis, end=axis + 1)
    ordered, places = op.TopK(values, size, axis=axis, largest=int(descending), sorted=1)
    return ordered, places


def note_ties(model: onnx.ModelProto) -> None:
    """Notes in a traced graph which lines use the places of sorted values without `stable=True`; see `ties_in`."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    sorts = [node for node in graph.node if node.op_type == "TopK" and len(node.output) > 1 and node.output[1] in read]
    places = [location_of_node(node) for node in sorts if not is_translation_of(node, "sort.stable")]
    lines = dict.fromkeys(f"{place}: `{place.source}`" for place in places if place is not None)
    if lines:
        model.metadata_props.add(key=_TIES, value="; ".join(lines))


def ties_in(model: onnx.ModelProto) -> str | None:
    """What is to be said about ties in a graph's sorts, as noted when it was traced; None if there is nothing."""
    lines = next((entry.value for entry in model.metadata_props if entry.key == _TIES), None)
    if lines is None:
        return None
    return (
        f"{lines}: torch leaves the order of equal values open, and the graph has the first one first: sort with "
        "stable=True, and for topk take the first of that"
    )


def forget_ties(model: onnx.ModelProto) -> None:
    """Takes the note about ties out of a graph, because a published one has no lines of code."""
    for entry in [entry for entry in model.metadata_props if entry.key == _TIES]:
        model.metadata_props.remove(entry)


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.aten.median.dim: _median,
    torch.ops.aten.kthvalue.default: _kth_value,
    torch.ops.aten.sort.stable: _stable_sort,
}
"""The translations to ONNX."""
