"""Rules for operators that compute each element from those at the same index, and for products, which sum over an axis.

An elementwise operator leaves padding where it is; a product that sums over the steps needs zeros there.
"""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import helper

from lengthwise_export.mending.engine import movable, rule, values
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.values import (
    BOOL,
    CROSSES_ROWS,
    DataTensor,
    Group,
    KnownTensor,
    Value,
    axis_text,
    constant_in,
)

# Operators with one input
_UNARY: Final = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu"),
    *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)

# Operators whose inputs are broadcast
_COMBINED: Final = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Max", "Mean", "Min", "Mod", "Mul"),
    *("Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)

# Operators whose inputs are broadcast, and whose output is of booleans
_TESTS: Final = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]

_KEEP_ZERO: Final = frozenset(
    {"Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity"}
    | {"LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan"}
    | {"Tanh"}
)
"""Operators with one input whose output for 0 is 0."""


@rule(*_UNARY, "IsNaN", "IsInf")
@rule("Identity", takes=movable)
def _unary(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a function or a test of each element: the node stays.

    Zeros at the padding stay zeros if the function of 0 is 0. An Identity of an index of rows is an index of rows.
    """
    kind = mender.node.op_type
    dtype = BOOL if kind in ("IsNaN", "IsInf") else value.dtype
    return replace(mender.keep_node(value), zero_padded=value.zero_padded and kind in _KEEP_ZERO, dtype=dtype)


@rule("Cast", "CastLike", takes=movable)
def _cast(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a change of the element type: the node stays; an index of rows gives an index of rows."""
    dtype = mender.attribute("to") or mender.inputs()[1].dtype
    return replace(mender.keep_node(value), zero_padded=value.zero_padded, dtype=dtype)


@rule(*_COMBINED, *_TESTS, takes=values)
def _combined(mender: Mender, inputs: list[Value]) -> DataTensor:
    """Mends a function of elements at the same index: the node stays, on operands whose axes are aligned.

    1. Both have the axis, of the same size at every length: each row's padding meets its own padding.
    2. One has size 1, or lacks the axis: it is broadcast, as in the original.
    3. One has added rows (a mean's divisor): they go where the other has its rows.
    4. Two axes of different sizes, or two axes of rows: refused, as rows or steps would be mixed.

    An index of rows is refused as an operand, except in a Max: exporters write the Max of it and another index only to
    get their common shape, so the output counts as an index of rows, too.
    """
    kind = mender.node.op_type
    is_row_index = any(isinstance(value, DataTensor) and value.is_row_index for value in inputs)
    if is_row_index and kind == "Max":
        inputs = [replace(value, is_row_index=False) if isinstance(value, DataTensor) else value for value in inputs]
    operands, result = mender.align_axes(inputs)
    (name,) = mender.copy_node([operand.name for operand in operands])
    dtype = BOOL if kind in _TESTS else operands[1 if kind == "Where" else 0].dtype
    # A product is 0 at all padding if one factor is 0 there and has all axes of time, and if no other factor can be
    # infinite or NaN there, since it is 0 there as well, or has known numbers.
    has_zero_factor = any(
        operand.zero_padded and len(operand.time_dims()) == len(result.time_dims()) for operand in operands
    )
    are_finite = all(
        operand.zero_padded or isinstance(value, KnownTensor) for operand, value in zip(operands, inputs, strict=True)
    )
    zero_padded = kind == "Mul" and has_zero_factor and are_finite
    return result.with_name(name, dtype=dtype, zero_padded=zero_padded, is_row_index=is_row_index)


@rule("Clip")
def _clip(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a Clip, which has a lower and an upper bound for each element.

    1. Both are constant, or left out: the node stays.
    2. One depends on the length or the data: Max and Min, so that each row may have its own bounds.
    """
    bounds = [mender.input_value(index) for index in (1, 2)]
    if all(bound is None or constant_in(bound) is not None for bound in bounds):
        return mender.keep_node(value)
    for kind, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound is not None:
            value = mender.broadcast_node(kind, value, bound)
    return value


@rule(
    "Dropout",
    takes=values,
    requires={
        "drops values at random: export the model in evaluation mode": (
            lambda mender, _: not np.any(mender.constant_input(2))
        ),
        "the mask of a Dropout is used: export the model in evaluation mode": lambda mender, _: (
            mender.output_count == 1
        ),
    },
)
def _dropout(mender: Mender, inputs: list[Value]) -> Value:
    """Removes a Dropout in evaluation mode: its output is its input. In training mode it is refused."""
    return inputs[0]


@rule(
    "OneHot",
    requires={
        "puts its new axis elsewhere than behind the others": (
            lambda mender, value: mender.attribute("axis", -1) in (-1, value.rank)
        )
    },
)
def _one_hot(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a OneHot whose new axis comes after all others: the node stays. A new axis elsewhere is refused."""
    dtype = int(helper.np_dtype_to_tensor_dtype(mender.constant_input(2).dtype))
    groups = (*value.groups, (mender.fixed_size(int(mender.constant_input(1).item())),))
    return replace(mender.keep_node(value, axis=-1), dtype=dtype, groups=groups)


@rule("Trilu", requires={"takes a triangle of merged axes": lambda _, value: not value.has_merged_axes})
def _trilu(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a triangle of the last two axes: the node stays, since an element has the same index at every width.

    A diagonal that is no constant is refused.
    """
    mender.constant_input(1)
    return replace(mender.keep_node(value), zero_padded=value.zero_padded)


_SUMS_PADDING: Final = "it sums over the steps, those of the padding too"  # a cause


@rule("MatMul")
def _matmul(mender: Mender, left: DataTensor) -> DataTensor:
    """Mends a product of matrices.

    1. The axis that is summed over is of fixed size: the node stays.
    2. It is of time (attention times values, pooling by a product): both factors get zeros at the padding, so that
       padding adds nothing.
    3. It is an axis of rows, or an axis of time that meets one of fixed size (weights): refused.
    """
    return _product(mender, left, mender.data_input(1))


def _product(mender: Mender, left: DataTensor, right: DataTensor) -> DataTensor:
    """Writes the matrix product of two tensors, with the axes of NumPy's `matmul`; refuses one that mixes rows."""
    # A factor of one axis is a matrix of one row on the left, or of one column on the right.
    if left.rank == 1:
        return mender.squeezed(_product(mender, mender.unsqueezed(left, [0]), right), [-2])
    if right.rank == 1:
        return mender.squeezed(_product(mender, left, mender.unsqueezed(right, [1])), [-1])
    left, right = _with_zeros_at_padding(mender, left, right)
    left_rows, right_columns = left.groups[-2], right.groups[-1]
    # A right factor that is one matrix, such as weights, is the same for all rows: the rows of the left matrix may then
    # be those of the batch, or merged axes.
    is_one_matrix = right.rank == 2 and not right.has_added_rows
    mender.refuse_if(
        len(right_columns) != 1 or (len(left_rows) != 1 and not is_one_matrix),
        f"multiplies merged axes, {axis_text(left_rows)} and {axis_text(right_columns)}",
    )
    mixes_right = any(size.is_rows for size in right_columns)
    mixes_left = any(size.is_rows for size in left_rows) and (not is_one_matrix or left.has_added_rows)
    mender.refuse_if(mixes_right or mixes_left, CROSSES_ROWS)
    factors, result = [left, right], left.with_name("", groups=left.groups[:-2], zero_padded=False)
    if not is_one_matrix:
        factors, result = mender.align_axes(factors, free=2)
    name = mender.emit("MatMul", [factor.name for factor in factors])
    return result.with_name(name, groups=(*result.groups, left_rows, right_columns))


def _with_zeros_at_padding(mender: Mender, left: DataTensor, right: DataTensor) -> tuple[DataTensor, DataTensor]:
    """The two factors of a matrix product; with zeros at the padding, if the product sums over the steps.

    It sums over the last axis of `left`, which has to match the last but one of `right`. Axes of different sizes,
    merged axes and the rows are refused.
    """
    left_axis, right_axis = left.groups[-1], right.groups[-2]
    if not mender.matches(left_axis, right_axis):
        if any(size.is_time for size in left_axis):
            why = "a layer of a fixed width over all steps. Pool the steps before it"
            mender.refuse(f"multiplies {axis_text(left_axis)} by weights for {axis_text(right_axis)}: {why}")
        mender.refuse(f"multiplies axes of different sizes, {axis_text(left_axis)} and {axis_text(right_axis)}")
    mender.refuse_rows(left_axis)
    mender.refuse_if(len(left_axis) != 1, f"multiplies over merged axes, {axis_text(left_axis)}")
    if not left_axis[0].is_time:
        return left, right
    left = mender.masked(left, left.dims_of(left.rank - 1), 0, _SUMS_PADDING)
    return left, mender.masked(right, right.dims_of(right.rank - 2), 0, _SUMS_PADDING)


@rule("Gemm")
def _gemm(mender: Mender, left: DataTensor) -> DataTensor:
    """Mends a product of two matrices plus a third: `alpha * A @ B + beta * C`.

    1. A and B have the axes of the original, B without rows, A is not transposed, C is a constant or left out, and the
       product does not sum over the steps: the node stays.
    2. Else it is written as a MatMul (by the rule for that), two Mul and an Add.
    """
    right, bias = mender.data_input(1), mender.input_value(2)
    transposes_left, transposes_right = mender.attribute("transA", 0), mender.attribute("transB", 0)
    is_plain = left.has_original_axes and not transposes_left and not left.groups[-1][0].is_time
    has_plain_right = right.has_original_axes and not any(size.is_rows for size in right.dim_sizes)
    if is_plain and has_plain_right and (bias is None or constant_in(bias) is not None):
        groups = right.groups[::-1] if transposes_right else right.groups
        # This refuses axes that do not match; there are no steps to fill with zeros.
        _with_zeros_at_padding(mender, left, right.with_name(right.name, groups=groups))
        kept = mender.keep_node(left, [right.name, *([] if bias is None else [bias.name])])
        return replace(kept, groups=(left.groups[0], groups[1]))
    left = mender.transposed(left, [1, 0]) if transposes_left else left
    right = mender.transposed(right, [1, 0]) if transposes_right else right
    result = _scaled(mender, _product(mender, left, right), mender.attribute("alpha", 1.0))
    if bias is not None:
        scaled_bias = _scaled(mender, mender.as_data(bias), mender.attribute("beta", 1.0))
        result = mender.broadcast_node("Add", result, scaled_bias)
    return result


def _scaled(mender: Mender, value: DataTensor, number: float) -> DataTensor:
    """The tensor times a number; for 1 the tensor itself."""
    if number == 1:
        return value
    return value.with_name(mender.emit("Mul", [value.name, mender.writer.scalar(number, value.dtype)]))


@rule("Einsum", takes=values)
def _einsum(mender: Mender, inputs: list[Value]) -> DataTensor:
    """Mends a sum of products by letters: an axis whose letter the result lacks is summed over.

    The node stays, with a new equation that has a letter for each dim of an axis, and one for added rows.

    1. The rows are summed over, or a letter stands twice in one operand: refused.
    2. A letter of time is summed over: the operands that have it get zeros at the padding.
    """
    operands = [mender.as_data(value) for value in inputs]
    terms, result = terms_of_axes(mender, [operand.rank for operand in operands])
    group_of: dict[str, Group] = {}  # by the letter of an axis
    for term, operand in zip(terms, operands, strict=True):
        for letter, group in zip(term, operand.groups, strict=True):
            pair = group_of.setdefault(letter, group), group
            different = f"combines axes of different sizes: {axis_text(pair[0])} and {axis_text(group)}"
            mender.refuse_if(not mender.matches(*pair), different)
    # New letters: each axis is spelled with a letter for each of its dims.
    new_letters = iter(string.ascii_letters)
    spelling_of = {letter: "".join(next(new_letters) for _ in group) for letter, group in group_of.items()}
    size_of = {  # by the new letter of a dim
        new_letter: size
        for letter, group in group_of.items()
        for new_letter, size in zip(spelling_of[letter], group, strict=True)
    }
    *new_terms, new_result = ["".join(spelling_of[letter] for letter in term) for term in (*terms, result)]
    # Case 1
    rows = [letter for letter, size in size_of.items() if size.is_rows]
    mender.refuse_if(len(rows) > 1 or not {*rows} <= {*new_result}, CROSSES_ROWS)
    # Case 2
    summed_times = {letter for letter, size in size_of.items() if size.is_time and letter not in new_result}
    masked = []
    for term, operand in zip(new_terms, operands, strict=True):
        dims = [dim for dim, letter in enumerate(term, start=int(operand.has_added_rows)) if letter in summed_times]
        masked.append(mender.masked(operand, dims, 0, _SUMS_PADDING))
    # Added rows have the letter of the rows, or one of their own.
    row = rows[0] if rows else next(new_letters)
    has_added_rows = any(operand.has_added_rows for operand in masked) and not rows
    spelled = [row + term if operand.has_added_rows else term for term, operand in zip(new_terms, masked, strict=True)]
    equation = f"{','.join(spelled)}->{row + new_result if has_added_rows else new_result}"
    kept = mender.keep_node(masked[0], [operand.name for operand in masked[1:]], equation=equation)
    kept = kept.because(next((operand.cause for operand in masked if operand.cause), ""))
    return replace(kept, groups=tuple(group_of[letter] for letter in result), has_added_rows=has_added_rows)


def terms_of_axes(mender: Mender, ranks: list[int]) -> tuple[list[str], str]:
    """The equation of an Einsum with a letter for each axis, without `...` and with a result.

    Args:
        mender: The mender; the node is refused if a letter stands twice in one input.
        ranks: The number of axes of each input.

    Returns:
        The letters of each input, and those of the result. For `...ab,b` and the ranks 3 and 1: `zab`, `b` and `za`,
        with any unused letter for z.
    """
    inputs, arrow, result = mender.attribute("equation").replace(" ", "").partition("->")
    letters = {letter for letter in inputs if letter.isalpha()}
    if not arrow:  # the result then has the letters that stand once, in alphabetic order
        single = sorted(letter for letter in letters if inputs.count(letter) == 1)
        result = "".join(["..." if "..." in inputs else "", *single])
    terms = inputs.split(",")
    unnamed_axes = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    # The axes of `...` are aligned at the end. So all inputs take the letters for them from the end of one list.
    unused = "".join(letter for letter in string.ascii_letters if letter not in letters)
    named_axes = {count: unused[len(unused) - count :] for count in unnamed_axes}  # by the number of axes
    spelled = [term.replace("...", named_axes[count]) for term, count in zip(terms, unnamed_axes, strict=True)]
    mender.refuse_if(any(len({*term}) != len(term) for term in spelled), "takes a diagonal")
    return spelled, result.replace("...", named_axes[max(unnamed_axes)])
