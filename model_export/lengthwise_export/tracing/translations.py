"""Operators of torch that its exporter cannot translate to ONNX, or translates wrongly for raw values.

`median`, `kthvalue` and a stable `sort` have no translation. And the exporter writes the logarithm of a sigmoid as
`log(sigmoid(x))`, which is minus infinity below -20, and logcumsumexp with the maximum of the whole sequence, so that
early values far below it are lost. The translations here compute the same as torch wherever torch's answer is finite.

A translation takes the arguments of the operator, tensors as values of the graph (`ir.Value`), adds nodes, and returns
the value of its result, or a pair of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

# As in `recurrent_op`: during an export its operators take and return `ir.Value`s.
op: Final[Any] = opset18


def _order_statistic(
    values: ir.Value, axis: int, count: ir.Value, rank: ir.Value, *, keepdim: bool
) -> tuple[ir.Value, ir.Value]:
    """The value of this rank among the `count` smallest along an axis, and its index.

    Args:
        values: The tensor.
        axis: Its axis, which is removed without `keepdim`.
        count: int64 `[1]`.
        rank: int64 `[1]`, from 0.
        keepdim: Whether the axis stays, with a size of 1.
    """
    ordered, indices = op.TopK(values, count, axis=axis, largest=0, sorted=1)
    axes = op.Constant(value_ints=[axis])
    value, index = (op.Gather(sorted_along, rank, axis=axis) for sorted_along in (ordered, indices))
    return (value, index) if keepdim else (op.Squeeze(value, axes), op.Squeeze(index, axes))


def _median(values: ir.Value, dim: int, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    """`aten.median.dim`: the value in the middle and its index; of an even number of values, the lower one."""
    axis = dim % len(values.shape or ())
    size = op.Shape(values, start=axis, end=axis + 1)
    one, two = (op.Constant(value_ints=[number]) for number in (1, 2))
    return _order_statistic(values, axis, size, op.Div(op.Sub(size, one), two), keepdim=keepdim)


def _kth_value(values: ir.Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    """`aten.kthvalue`: the k-th smallest value, counted from 1, and its index."""
    count, last = op.Constant(value_ints=[k]), op.Constant(value_ints=[k - 1])
    return _order_statistic(values, dim % len(values.shape or ()), count, last, keepdim=keepdim)


def _stable_sort(
    values: ir.Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[ir.Value, ir.Value]:
    """`aten.sort.stable`: the sorted values, and their indices.

    Of equal values, TopK takes the one with the smaller index first, in either direction: it is stable.
    """
    axis = dim % len(values.shape or ())
    size = op.Shape(values, start=axis, end=axis + 1)
    ordered, indices = op.TopK(values, size, axis=axis, largest=int(descending), sorted=1)
    return ordered, indices


def _number(value: float, like: ir.Value) -> Any:
    """A number as a constant of the element type of the value `like`; float32 if that is not known."""
    dtype = ir.DataType.FLOAT if like.dtype is None else like.dtype
    return op.Constant(value=ir.tensor(np.asarray(value, dtype=dtype.numpy())))


def _operands(x: ir.Value | float, y: ir.Value | float) -> tuple[ir.Value, ir.Value]:
    """Two operands as values; a Python number becomes a constant of the type of the other operand."""
    if isinstance(x, ir.Value):
        return x, y if isinstance(y, ir.Value) else _number(y, x)
    assert isinstance(y, ir.Value)  # torch computes with two numbers itself
    return _number(x, y), y


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _log_sigmoid(x: ir.Value) -> Any:
    """The logarithm of a sigmoid, as `-log(1 + exp(-x))`, which is finite for every finite x."""
    return op.Neg(op.Softplus(op.Neg(x)))


def _log_add_exp(x: ir.Value, y: ir.Value, log_of_base: float = 1.0) -> Any:
    """`log(exp(x) + exp(y))`, as the larger operand plus `log(1 + exp(-difference))`.

    `log_of_base` is the natural logarithm of the base: 1 for e, log(2) for `logaddexp2`. Between equal infinities the
    difference is 0, where a subtraction would give NaN.
    """
    scale = _number(log_of_base, x)
    difference = op.Where(op.Equal(x, y), _number(0.0, x), op.Abs(op.Sub(x, y)))
    added = op.Softplus(op.Neg(op.Mul(difference, scale)))
    return op.Add(op.Max(x, y), op.Div(added, scale))


_LOG_ADD_EXP_BODY: Final = """
    <ir_version: 10, opset_import: ["" : 18]>
    log_add_exp ({0}[] log_sum_before, {0}[] value_of_step) => ({0}[] log_sum, {0}[] log_sum_of_step) {{
        log_add_exp_zero = Constant <value = {0} {{0}}> ()
        log_add_exp_equal = Equal (log_sum_before, value_of_step)
        log_add_exp_difference = Sub (log_sum_before, value_of_step)
        log_add_exp_size = Abs (log_add_exp_difference)
        log_add_exp_apart = Where (log_add_exp_equal, log_add_exp_zero, log_add_exp_size)
        log_add_exp_minus = Neg (log_add_exp_apart)
        log_add_exp_added = Softplus (log_add_exp_minus)
        log_add_exp_larger = Max (log_sum_before, value_of_step)
        log_add_exp_sum = Add (log_add_exp_larger, log_add_exp_added)
        log_sum = Identity (log_add_exp_sum)
        log_sum_of_step = Identity (log_add_exp_sum)
    }}
"""
"""The body of a Scan over the steps: computes `_log_add_exp` of the result of the step before and the value of a step.

`{0}` is the element type as ONNX's text writes it.
"""

_TEXT_OF_TYPES: Final = {
    ir.DataType.FLOAT: "float",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "double",
}
"""Element types as ONNX's text writes them."""


def _log_cum_sum_exp(x: ir.Value, dim: int) -> Any:
    """`aten.logcumsumexp`: the logarithm of the sum of exponentials up to each step, as a Scan along the axis `dim`.

    As in torch, it is one `_log_add_exp` after another.
    """
    rank = len(x.shape or ())
    if rank == 0:
        return op.Identity(x)
    order = list(range(rank))
    order[0], order[dim % rank] = order[dim % rank], order[0]
    steps_first = op.Transpose(x, perm=order)
    # The sum before the first step is 0, its logarithm minus infinity, in the shape of one step
    start = op.Min(op.Gather(steps_first, op.Constant(value_int=0), axis=0), _number(-math.inf, x))
    body = ir.from_onnx_text(_LOG_ADD_EXP_BODY.format(_TEXT_OF_TYPES[x.dtype or ir.DataType.FLOAT])).graph
    scan = op.Scan(start, steps_first, body=body, num_scan_inputs=1).producer()
    scan.resize_outputs(2)  # onnxscript gives a Scan one output: the last sum; the second has the sum at each step
    return op.Transpose(scan.outputs[1], perm=order)


def _log1p(x: ir.Value) -> Any:
    """`log(1 + x)`, corrected for the rounding of the sum (Higham, Accuracy and Stability, 1.14.1)."""
    one = _number(1.0, x)
    total = op.Add(one, x)
    rounded = op.Sub(total, one)
    corrected = op.Mul(op.Log(total), op.Div(x, rounded))
    is_small = op.Less(op.Abs(x), one)
    return op.Where(op.Equal(rounded, _number(0.0, x)), x, op.Where(is_small, corrected, op.Log(total)))


def _exp_m1(x: ir.Value) -> Any:
    """`exp(x) - 1`, corrected for the rounding of the difference (Higham, Accuracy and Stability, 1.14.1)."""
    one = _number(1.0, x)
    power = op.Exp(x)
    difference = op.Sub(power, one)
    corrected = op.Mul(difference, op.Div(x, op.Log(power)))
    is_small = op.Less(op.Abs(x), one)
    return op.Where(op.Equal(power, one), x, op.Where(is_small, corrected, difference))


def _is_negative(x: ir.Value) -> Any:
    """Whether the sign of a number is minus. That of a zero is the sign of its reciprocal, an infinity."""
    zero = _number(0.0, x)
    if not _is_float(x):
        return op.Less(x, zero)
    return op.Or(op.Less(x, zero), op.And(op.Equal(x, zero), op.Less(op.Reciprocal(x), zero)))


def _atan2(y: ir.Value, x: ir.Value) -> Any:
    """`aten.atan2`: the angle of the point (x, y), in radians.

    It is the arc tangent of the smaller over the larger coordinate, which is in the first octant, then mirrored into
    the octant of the point. NaN stays NaN.
    """
    zero, one = _number(0.0, x), _number(1.0, x)
    height, width = op.Abs(y), op.Abs(x)
    larger, smaller = op.Max(height, width), op.Min(height, width)
    quotient = op.Where(op.Equal(larger, smaller), one, op.Div(smaller, larger))  # 1, too, of two infinities
    quotient = op.Where(op.Equal(larger, zero), zero, quotient)
    angle = op.Atan(quotient)
    angle = op.Where(op.Greater(height, width), op.Sub(_number(math.pi / 2, x), angle), angle)
    angle = op.Where(_is_negative(x), op.Sub(_number(math.pi, x), angle), angle)
    angle = op.Where(_is_negative(y), op.Neg(angle), angle)
    return op.Where(op.IsNaN(op.Add(x, y)), op.Where(op.IsNaN(x), x, op.Where(op.IsNaN(y), y, angle)), angle)


def _remainder(x: ir.Value | float, divisor: ir.Value | float) -> Any:
    """`aten.remainder`: the remainder of a division, with the sign of the divisor, as in Python."""
    x, divisor = _operands(x, divisor)
    remainder = op.Mod(x, divisor, fmod=1 if _is_float(x) else 0)
    if not _is_float(x):
        return remainder
    # With `fmod`, which floats need, the remainder has the sign of x
    zero = _number(0.0, x)
    has_other_sign = op.Xor(op.Less(remainder, zero), op.Less(divisor, zero))
    is_wrong = op.And(has_other_sign, op.Not(op.Equal(remainder, zero)))
    return op.Where(is_wrong, op.Add(remainder, divisor), remainder)


def _floor_divide(x: ir.Value | float, divisor: ir.Value | float) -> Any:
    """`aten.floor_divide`, as `(x - remainder) / divisor`; `x / divisor` may be rounded up to the next whole number."""
    x, divisor = _operands(x, divisor)
    quotient = op.Div(op.Sub(x, _remainder(x, divisor)), divisor)
    if not _is_float(x):
        return quotient
    return op.Where(op.Equal(divisor, _number(0.0, x)), op.Div(x, divisor), op.Round(quotient))


def _divide(x: ir.Value | float, divisor: ir.Value | float, rounding_mode: str | None = None) -> Any:
    """`aten.div`: the quotient, rounded down (`floor`), towards zero (`trunc`) or not at all."""
    if rounding_mode == "floor":
        return _floor_divide(x, divisor)
    x, divisor = _operands(x, divisor)
    quotient = op.Div(x, divisor)
    if rounding_mode is None or not _is_float(x):
        return quotient
    return op.Where(op.Less(quotient, _number(0.0, x)), op.Ceil(quotient), op.Floor(quotient))


_ERFC: Final = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
"""Coefficients of a Chebyshev fit of the logarithm of erfcx, with a relative error below 1.2e-7 everywhere (Numerical
Recipes, 6.2)."""


def _scaled_erfcx(x: ir.Value, exponent: ir.Value) -> Any:
    """`erfcx(|x|) exp(exponent)`, by the fit `_ERFC` and Horner's method; with `exponent = -x^2` it is `erfc(|x|)`."""
    t = op.Reciprocal(op.Add(_number(1.0, x), op.Mul(_number(0.5, x), op.Abs(x))))
    total = _number(_ERFC[-1], x)
    for coefficient in reversed(_ERFC[:-1]):
        total = op.Add(op.Mul(total, t), _number(coefficient, x))
    return op.Mul(t, op.Exp(op.Add(total, exponent)))


def _erfc(x: ir.Value) -> Any:
    """`aten.erfc`: `1 - erf(x)` below 0.5; above, a fit, because the difference would round to 0."""
    tail = _scaled_erfcx(x, op.Neg(op.Mul(x, x)))
    return op.Where(op.Less(x, _number(0.5, x)), op.Sub(_number(1.0, x), op.Erf(x)), tail)


def _erfcx(x: ir.Value) -> Any:
    """`aten.special_erfcx`: `exp(x^2) erfc(x)`, for x below 0 as `2 exp(x^2) - erfcx(|x|)`."""
    zero = _number(0.0, x)
    tail = _scaled_erfcx(x, zero)
    mirrored = op.Sub(op.Mul(_number(2.0, x), op.Exp(op.Mul(x, x))), tail)
    return op.Where(op.Less(x, zero), mirrored, tail)


_aten: Final = torch.ops.aten

TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    _aten.median.dim: _median,
    _aten.kthvalue.default: _kth_value,
    _aten.sort.stable: _stable_sort,
    _aten.log_sigmoid.default: _log_sigmoid,
    _aten.log_sigmoid_forward.default: lambda x: (_log_sigmoid(x),) * 2,
    _aten.logaddexp.default: _log_add_exp,
    _aten.logaddexp2.default: lambda x, y: _log_add_exp(x, y, math.log(2)),
    _aten.logcumsumexp.default: _log_cum_sum_exp,
    _aten.log1p.default: _log1p,
    _aten.special_log1p.default: _log1p,
    _aten.expm1.default: _exp_m1,
    _aten.special_expm1.default: _exp_m1,
    _aten.signbit.default: _is_negative,
    _aten.atan2.default: _atan2,
    _aten.remainder.Tensor: _remainder,
    _aten.remainder.Scalar: _remainder,
    _aten.remainder.Scalar_Tensor: _remainder,
    _aten.floor_divide.default: _floor_divide,
    _aten.div.Tensor_mode: _divide,
    _aten.erfc.default: _erfc,
    _aten.special_erfc.default: _erfc,
    _aten.special_erfcx.default: _erfcx,
}
"""The translations to ONNX, by the operator of torch."""
