"""Operators that compute each element from the elements at the same place: padding stays where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from onnx import helper

from lengthwise_export.mending.mender import BOOL, Mender, rule
from lengthwise_export.mending.values import Numbers, Ragged

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
    kind = mender.node.op_type
    value = mender.tensor(0) if kind == "Identity" else mender.ragged(0)
    mender.rerun(value, zeroed=value.zeroed and kind in _KEEP_ZERO)


@rule("IsNaN", "IsInf")
def _test(mender: Mender) -> None:
    mender.rerun(mender.ragged(0), dtype=BOOL)


@rule("Cast", "CastLike")
def _cast(mender: Mender) -> None:
    value, to = mender.tensor(0), mender.attribute("to")
    mender.rerun(value, zeroed=value.zeroed, dtype=mender.given(1).dtype if to is None else to)


@rule(*_COMBINED, *_TESTS)
def _combined(mender: Mender) -> None:
    values = [mender.values[name] for name in mender.node.input if name]
    counts_rows = any(isinstance(value, Ragged) and value.counts_rows for value in values)
    if counts_rows and mender.node.op_type == "Max":  # of an index and the numbers of the rows, for their common shape
        values = [replace(value, counts_rows=False) if isinstance(value, Ragged) else value for value in values]
    operands, groups, row_added = mender.align(values)
    (name,) = mender.copy([operand.name for operand in operands])
    kind = mender.node.op_type
    dtype = BOOL if kind in _TESTS else operands[1 if kind == "Where" else 0].dtype
    times = [size for group in groups for size in group if size.is_time]
    # A product is 0 where one factor is, if that factor has all the axes of time and the others are finite there.
    zeroed = (
        kind == "Mul"
        and any(operand.zeroed and sum(size.is_time for size in operand.axes) == len(times) for operand in operands)
        and all(operand.zeroed or isinstance(value, Numbers) for operand, value in zip(operands, values, strict=True))
    )
    mender.set(Ragged(name, dtype, groups, row_added, zeroed, counts_rows=counts_rows))


@rule("Clip")
def _clip(mender: Mender) -> None:
    value = mender.ragged(0)
    bounds = [mender.value(place) for place in (1, 2)]
    if any(bound is not None and not (isinstance(bound, Numbers) and bound.is_constant) for bound in bounds):
        for kind, bound in zip(("Max", "Min"), bounds, strict=True):
            if bound is not None:
                value = mender.combined(kind, value, bound)
        mender.set(value)
        return
    mender.rerun(value)


@rule("Dropout")
def _dropout(mender: Mender) -> None:
    training = mender.constant(2)
    if training is not None and bool(training.any()):
        mender.refuse("drops values at random: export the model in evaluation mode")
    mender.set(mender.given(0))
    if len(mender.node.output) > 1 and mender.node.output[1]:
        mender.refuse("the mask of a Dropout is used: export the model in evaluation mode")


@rule("OneHot")
def _one_hot(mender: Mender) -> None:
    """A new axis of fixed size behind the others."""
    value, depth = mender.ragged(0), mender.constant(1)
    if depth is None or mender.attribute("axis", -1) not in (-1, value.rank):
        mender.refuse("puts its new axis elsewhere than behind the others")
    dtype = int(helper.np_dtype_to_tensor_dtype(mender.array(2).dtype))
    (name,) = mender.copy([value.name, *mender.rest()], axis=-1)
    groups = (*value.groups, (mender.fixed(int(depth.reshape(-1)[0])),))
    mender.set(Ragged(name, dtype, groups, value.row_added))


@rule("Trilu")
def _trilu(mender: Mender) -> None:
    """Keeps a triangle of the last two axes, the same one at every width."""
    value = mender.ragged(0)
    mender.constant(1)
    if value.is_merged:
        mender.refuse("takes a triangle of merged axes")
    mender.rerun(value, zeroed=value.zeroed)
