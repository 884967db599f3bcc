"""What `fusion` knows of the values of a graph that have an axis of steps, and how masks are computed from each other.

| value | is |
|---|---|
| `Packed` | packed steps in the new graph (`kernels/_packed_steps.h`) |
| `Mask` | one number at all valid steps, and another at padding: a mask, or what is computed from masks only |
| `Count` | the indices of the steps, or the lengths of the rows: masks are made from these |

`axes` has a letter for each axis of the value in the original graph:

| letter | axis |
|---|---|
| `r`, `s`, `f` | rows, steps, features |
| `d` | directions of a recurrent layer, which packed steps have side by side in their features |
| `1` | an axis of size one of a mask or a count |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from lengthwise.runtime.onnx.pattern import HIDDEN, require

COMPARISONS: Final = {
    "Less": ("s", 1.0),
    "Greater": ("r", 1.0),
    "GreaterOrEqual": ("s", 0.0),
    "LessOrEqual": ("r", 0.0),
}
"""Comparisons of steps with lengths, by operator: which comes first, and the result at valid steps."""
MASK_ARITHMETIC: Final[dict[str, Callable[..., float]]] = {
    "Add": lambda one, other: one + other,
    "And": lambda one, other: float(bool(one and other)),
    "Cast": lambda one: one,
    "Identity": lambda one: one,
    "Mul": lambda one, other: one * other,
    "Not": lambda one: float(not one),
    "Or": lambda one, other: float(bool(one or other)),
    "Sub": lambda one, other: one - other,
    "Where": lambda condition, one, other: one if condition else other,
}
"""The operators that compute masks from masks and constants."""


class Packed(NamedTuple):
    """Packed steps."""

    axes: str
    name: str  # in the new graph: `[packed, features]`
    padding: float | None = None  # what the original value has at padding; None if that is not known


class Mask(NamedTuple):
    """One number at all valid steps, and another at padding."""

    axes: str
    valid: float
    padding: float


class Count(NamedTuple):
    """The indices of the steps, if `s` is among the axes; or the lengths, if `r` is."""

    axes: str


StepValue: TypeAlias = Packed | Mask | Count


def broadcast(*all_axes: str) -> str:
    """Returns the axes of the result of an operator on single elements, whose inputs have these axes.

    Raises:
        NotFound: Two axes that are broadcast are not the same, and none of them has size one.
    """  # noqa: DOC502 - `require` raises it
    rank = max(map(len, all_axes))
    letters = [{*column} - {"1"} for column in zip(*(axes.rjust(rank, "1") for axes in all_axes), strict=True)]
    require(all(len(column) < 2 for column in letters))
    return "".join(column.pop() if column else "1" for column in letters)


def inserted(value: StepValue, axis: float) -> StepValue:
    """Returns a value with an axis of size one: of packed steps that are scalars, it is the axis of features.

    `NotFound` (`require`) if packed steps have features already.
    """
    place = int(axis) % (len(value.axes) + 1)
    letter = "f" if isinstance(value, Packed) else "1"
    require(letter not in value.axes.replace("1", ""))
    return value._replace(axes=value.axes[:place] + letter + value.axes[place:])


def removed(value: StepValue, axis: float) -> StepValue:
    """Returns a value without an axis of size one; `NotFound` (`require`) if it is the axis of rows or of steps."""
    place = int(axis) % len(value.axes)
    require(value.axes[place] not in "rs")
    return value._replace(axes=value.axes[:place] + value.axes[place + 1 :])


def masked(operator: str, value: Packed, mask: Mask) -> Packed:
    """Returns an Add, Sub or Mul of packed steps and a mask that changes no valid step.

    `NotFound` (`require`) for another operator or mask.
    """
    require(operator in ("Add", "Sub", "Mul") and mask.valid == (operator == "Mul"))
    require(broadcast(mask.axes, value.axes) == value.axes)
    # What the sum or product is at padding, where the value there is not known
    is_known = value.padding is not None or (mask.padding == 0 if operator == "Mul" else abs(mask.padding) >= -HIDDEN)
    return value._replace(padding=MASK_ARITHMETIC[operator](value.padding or 0.0, mask.padding) if is_known else None)
