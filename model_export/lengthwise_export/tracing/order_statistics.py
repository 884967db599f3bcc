"""`median` and `kthvalue` in ONNX, for which the exporter has no translation: the values in order, and one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from onnxscript import ir, opset18

# As in `recurrent_op`: during an export its operators take and return `ir.Value`s.
op: Final[Any] = opset18


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


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.aten.median.dim: _median,
    torch.ops.aten.kthvalue.default: _kth_value,
}
"""The translations to ONNX."""
