"""Operators that compute each element from those at the same index, and products, which sum over an axis.

Padding stays where it is in the first; a product over the steps needs zeros beyond each row's length.
"""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Final

from onnx import helper

from lengthwise_export.mending.mender import BOOL, Mender, rule
from lengthwise_export.mending.values import CROSSES_ROWS, DataTensor, Group, KnownTensor, axis_text

_UNARY: Final = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh", "Elu"),
    *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)

_COMBINED: Final = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Max", "Mean", "Min", "Mod", "Mul"),
    *("Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)

_TESTS: Final = ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]

_KEEP_ZERO: Final = frozenset(
    {"Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity"}
    | {"LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan"}
    | {"Tanh"}
)
"""Operators that make 0 of 0."""


@rule(*_UNARY)
def _unary(mender: Mender) -> None:
    """A function of each element: the node stays.

    Each element depends on itself alone, so padding stays where it is. Zeros beyond a row's length stay zeros where
    the function makes 0 of 0.
    """
    kind = mender.node.op_type
    value = mender.movable_input(0) if kind == "Identity" else mender.data_input(0)
    mender.keep_node(value, zero_padded=value.zero_padded and kind in _KEEP_ZERO)


@rule("IsNaN", "IsInf")
def _test(mender: Mender) -> None:
    """A test of each element: the node stays, and gives booleans."""
    mender.keep_node(mender.data_input(0), dtype=BOOL)


@rule("Cast", "CastLike")
def _cast(mender: Mender) -> None:
    """Another element type: the node stays. The numbers of the rows keep their meaning."""
    value, to = mender.movable_input(0), mender.attribute("to")
    mender.keep_node(value, zero_padded=value.zero_padded, dtype=mender.required_input(1).dtype if to is None else to)


@rule(*_COMBINED, *_TESTS)
def _combined(mender: Mender) -> None:
    """A function of elements at the same index: the node stays, on operands whose axes are aligned.

    1. Both have the axis, of the same size at every length: each row's padding meets its own padding.
    2. One has size 1, or lacks the axis: it is broadcast, as in the original.
    3. One differs between rows by their lengths only (a mean's divisor): its added axis of rows goes where the
       other has its rows.
    4. Two axes of different sizes, or two axes of rows: refused, as rows or steps would be mixed.
    """
    values = [mender.values[name] for name in mender.node.input if name]
    is_row_index = any(isinstance(value, DataTensor) and value.is_row_index for value in values)
    if is_row_index and mender.node.op_type == "Max":  # of an index and the numbers of the rows, for their common shape
        values = [replace(value, is_row_index=False) if isinstance(value, DataTensor) else value for value in values]
    operands, groups, has_added_rows = mender.align_axes(values)
    (name,) = mender.copy_node([operand.name for operand in operands])
    kind = mender.node.op_type
    dtype = BOOL if kind in _TESTS else operands[1 if kind == "Where" else 0].dtype
    times = [size for group in groups for size in group if size.is_time]
    # A product is 0 where one factor is, if that factor has all the axes of time and the others are finite there.
    zero_padded = (
        kind == "Mul"
        and any(
            operand.zero_padded and sum(size.is_time for size in operand.dim_sizes) == len(times)
            for operand in operands
        )
        and all(
            operand.zero_padded or isinstance(value, KnownTensor)
            for operand, value in zip(operands, values, strict=True)
        )
    )
    mender.set_output(DataTensor(name, dtype, groups, has_added_rows, zero_padded, is_row_index=is_row_index))


@rule("Clip")
def _clip(mender: Mender) -> None:
    """Bounds of each element.

    1. Constant bounds, or none: the node stays.
    2. Bounds that depend on the length or the data: Max and Min, which broadcast them for each row.
    """
    value = mender.data_input(0)
    bounds = [mender.input_value(index) for index in (1, 2)]
    if any(bound is not None and not (isinstance(bound, KnownTensor) and bound.is_constant) for bound in bounds):
        for kind, bound in zip(("Max", "Min"), bounds, strict=True):
            if bound is not None:
                value = mender.broadcast_node(kind, value, bound)
        mender.set_output(value)
        return
    mender.keep_node(value)


@rule("Dropout")
def _dropout(mender: Mender) -> None:
    """Nothing happens in evaluation mode: the output is the input. In training mode it is refused."""
    training = mender.constant_input(2)
    mender.refuse_if(
        training is not None and bool(training.any()), "drops values at random: export the model in evaluation mode"
    )
    mender.set_output(mender.required_input(0))
    mender.refuse_if(
        len(mender.node.output) > 1 and mender.node.output[1],
        "the mask of a Dropout is used: export the model in evaluation mode",
    )


@rule("OneHot")
def _one_hot(mender: Mender) -> None:
    """A new axis of fixed size behind the other axes: the node stays. A new axis in front is refused."""
    value, depth = mender.data_input(0), mender.required_constant(1)
    is_last = mender.attribute("axis", -1) in (-1, value.rank)
    mender.refuse_if(not is_last, "puts its new axis elsewhere than behind the others")
    dtype = int(helper.np_dtype_to_tensor_dtype(mender.required_constant(2).dtype))
    (name,) = mender.copy_node([value.name, *mender.further_inputs()], axis=-1)
    groups = (*value.groups, (mender.fixed_size(int(depth.reshape(-1)[0])),))
    mender.set_output(DataTensor(name, dtype, groups, value.has_added_rows))


@rule("Trilu")
def _trilu(mender: Mender) -> None:
    """A triangle of the last two axes: the node stays, since the triangle is the same at every width."""
    value = mender.data_input(0)
    mender.constant_input(1)
    mender.refuse_if(value.has_merged_axes, "takes a triangle of merged axes")
    mender.keep_node(value, zero_padded=value.zero_padded)


@rule("MatMul")
def _matmul(mender: Mender) -> None:
    """A product of matrices.

    1. The axis that is summed over is of fixed size: the node stays.
    2. It is of time (attention times values, pooling by a product): both factors get zeros beyond each row's length,
       so that padding adds nothing.
    3. It is the rows, or is time against weights of a fixed size: refused.
    """
    mender.set_output(_product(mender, mender.data_input(0), mender.data_input(1)))


def _product(mender: Mender, left: DataTensor, right: DataTensor) -> DataTensor:
    """The matrix product of two tensors, with the axes of NumPy's `matmul`."""
    if left.rank == 1:
        return mender.squeezed(_product(mender, mender.unsqueezed(left, [0]), right), [-2])
    if right.rank == 1:
        return mender.squeezed(_product(mender, left, mender.unsqueezed(right, [1])), [-1])
    left, right = _summable(mender, left, right)
    plain = right.rank == 2 and not right.has_added_rows
    mender.refuse_if(
        len(right.groups[-1]) != 1 or (len(left.groups[-2]) != 1 and not plain),
        f"multiplies merged axes, {axis_text(left.groups[-2])} and {axis_text(right.groups[-1])}",
    )
    right_rows, left_rows = (any(size.is_rows for size in group) for group in (right.groups[-1], left.groups[-2]))
    mender.refuse_if(right_rows or (left_rows and (not plain or left.has_added_rows)), CROSSES_ROWS)
    first, second, groups, has_added_rows = left, right, left.groups[:-2], left.has_added_rows
    if not plain:
        (first, second), groups, has_added_rows = mender.align_axes([left, right], free=2)
    name = mender.emit("MatMul", [first.name, second.name])
    return DataTensor(name, left.dtype, (*groups, left.groups[-2], right.groups[-1]), has_added_rows)


def _summable(mender: Mender, left: DataTensor, right: DataTensor) -> tuple[DataTensor, DataTensor]:
    """The factors, with zeros at padding where the product sums over the steps."""
    inner, other = left.groups[-1], right.groups[-2]
    if not mender.matches(inner, other):
        if any(size.is_time for size in inner):
            why = "a layer of a fixed width over all steps. Pool the steps before it"
            mender.refuse(f"multiplies {axis_text(inner)} by weights for {axis_text(other)}: {why}")
        mender.refuse(f"multiplies axes of different sizes, {axis_text(inner)} and {axis_text(other)}")
    mender.refuse_rows(inner)
    mender.refuse_if(len(inner) != 1, f"multiplies over merged axes, {axis_text(inner)}")
    if not inner[0].is_time:
        return left, right
    mender.causes.append("it sums over the steps, those of the padding too")
    return (mender.masked(left, left.dims_of(left.rank - 1), 0), mender.masked(right, right.dims_of(right.rank - 2), 0))


@rule("Gemm")
def _gemm(mender: Mender) -> None:
    """A product of two matrices, plus a third.

    1. Nothing is merged, transposed in front or summed over time: the node stays.
    2. Else it becomes a product as MatMul has, with its factors alpha and beta, and an Add.
    """
    left, right, bias = mender.data_input(0), mender.data_input(1), mender.input_value(2)
    swaps = mender.attribute("transA", 0), mender.attribute("transB", 0)
    plain = not (
        left.has_merged_axes or left.has_added_rows or right.has_merged_axes or right.has_added_rows or swaps[0]
    )
    time_inside = left.groups[0 if swaps[0] else -1][0].is_time
    constant_bias = bias is None or (isinstance(bias, KnownTensor) and bias.is_constant)
    if (
        plain
        and constant_bias
        and not time_inside
        and not right.dim_sizes[0].is_rows
        and not right.dim_sizes[1].is_rows
    ):
        groups = right.groups[::-1] if swaps[1] else right.groups
        _summable(mender, left, right.with_name(right.name, groups=groups))
        (name,) = mender.copy_node([left.name, right.name, *([bias.name] if bias is not None else [])])
        mender.set_output(DataTensor(name, left.dtype, (left.groups[0], groups[1])))
        return
    operands = [_turned(mender, value) if swap else value for value, swap in zip((left, right), swaps, strict=True)]
    result = _scaled(mender, _product(mender, *operands), mender.attribute("alpha", 1.0))
    if bias is not None:
        added = _scaled(mender, mender.as_data(bias), mender.attribute("beta", 1.0))
        result = mender.broadcast_node("Add", result, added)
    mender.set_output(result)


def _scaled(mender: Mender, value: DataTensor, number: float) -> DataTensor:
    """The tensor times a number; itself for 1."""
    if number == 1:
        return value
    return value.with_name(mender.emit("Mul", [value.name, mender.writer.scalar(number, value.dtype)]))


def _turned(mender: Mender, value: DataTensor) -> DataTensor:
    """A tensor of two axes, transposed."""
    dims = [0] * value.has_added_rows + [*value.dims_of(1), *value.dims_of(0)]
    return value.with_name(mender.writer.transposed(value.name, dims), groups=value.groups[::-1])


@rule("Einsum")
def _einsum(mender: Mender) -> None:
    """Sums of products, by letters: an axis that the result lacks is summed over.

    1. No letter of time is summed over: the node stays. A merged axis gets a letter for each of its axes, an added
       axis of rows a letter of its own.
    2. A letter of time is summed over: the operands that have it get zeros beyond each row's length.
    3. The rows are summed over, or a letter stands twice in one operand: refused.
    """
    operands = [mender.data_input(index) for index in range(len(mender.node.input))]
    terms, result = _terms(mender, [operand.rank for operand in operands])
    groups: dict[str, Group] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, group in zip(term, operand.groups, strict=True):
            first = groups.setdefault(letter, group)
            different = f"combines axes of different sizes: {axis_text(first)} and {axis_text(group)}"
            mender.refuse_if(not mender.matches(first, group), different)
    fresh = iter(string.ascii_letters)
    parts = {letter: "".join(next(fresh) for _ in group) for letter, group in groups.items()}
    sizes = {part: size for letter, group in groups.items() for part, size in zip(parts[letter], group, strict=True)}
    *terms, result_term = ["".join(parts[letter] for letter in term) for term in (*terms, result)]
    rows = [part for part, size in sizes.items() if size.is_rows]
    mender.refuse_if(len(rows) > 1 or not {*rows} <= {*result_term}, CROSSES_ROWS)
    times = {part for part, size in sizes.items() if size.is_time and part not in result_term}
    if times:
        mender.causes.append("it sums over the steps, those of the padding too")
    masked = [
        mender.masked(operand, [index + operand.has_added_rows for index, part in enumerate(term) if part in times], 0)
        for term, operand in zip(terms, operands, strict=True)
    ]
    has_added_rows = any(operand.has_added_rows for operand in masked) and not rows
    row = rows[0] if rows else next(fresh)
    full = ",".join(row * operand.has_added_rows + term for term, operand in zip(terms, masked, strict=True))
    (name,) = mender.copy_node(
        [operand.name for operand in masked], equation=f"{full}->{row * has_added_rows}{result_term}"
    )
    mender.set_output(DataTensor(name, masked[0].dtype, tuple(groups[letter] for letter in result), has_added_rows))


def _terms(mender: Mender, ranks: list[int]) -> tuple[list[str], str]:
    """A letter for each axis of the inputs and of the result; those that `...` stands for are counted from the end."""
    inputs, arrow, result = mender.attribute("equation").replace(" ", "").partition("->")
    letters = {letter for letter in inputs if letter.isalpha()}
    if not arrow:
        result = "..." * ("..." in inputs) + "".join(sorted(each for each in letters if inputs.count(each) == 1))
    unnamed = [letter for letter in string.ascii_letters if letter not in letters]
    terms = inputs.split(",")
    open_axes = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    spelled = [
        term.replace("...", "".join(reversed(unnamed[:count]))) for term, count in zip(terms, open_axes, strict=True)
    ]
    mender.refuse_if(any(len({*term}) != len(term) for term in spelled), "takes a diagonal")
    return spelled, result.replace("...", "".join(reversed(unnamed[: max(open_axes)])))
