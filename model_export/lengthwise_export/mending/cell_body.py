"""Values of a loop's body as affine functions of its step and its states, and the operators of recurrent cells on them.

Every value of the body is written as an affine function of *leaves*: the step, the states, products of two values, and
activations of one value. How its author joined, split or transposed the weights does not matter then. Products of sums
of leaves are written as sums of products: `n + z * (h - n)` is the same as `z * h + (1 - z) * n`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from lengthwise_export.mending.values import Attributes, run_node
from lengthwise_export.onnx_graphs.protos import attributes_of

ConstantArray = NDArray[Any]


class NotACell(Exception):
    """The body of a loop is not one of the known recurrent cells."""


_T = TypeVar("_T")


def _require(condition: object) -> None:
    """Ends the search for a cell if a condition is false.

    Raises:
        NotACell: The condition is false.
    """
    if not condition:
        raise NotACell


def _present(value: _T | None) -> _T:
    """The value, if it is not None.

    Raises:
        NotACell: It is None.
    """
    if value is None:
        raise NotACell
    return value


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value that is no affine function of others: a step, a state, a product or an activation."""

    kind: str  # `input`, `product`, or the name of an activation
    width: int
    operands: tuple[Affine, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()  # The activation's numbers by name, such as its `alpha`


@dataclass(eq=False)
class Affine:
    """`sum of leaf @ matrix, plus bias`, of shape `[rows, width]`."""

    terms: Mapping[Leaf, ConstantArray]  # The matrix `[width of the leaf, width]` of each leaf
    bias: ConstantArray  # `[width]`

    def __post_init__(self) -> None:
        """Leaves out leaves that are multiplied by zeros."""
        self.terms = {leaf: matrix for leaf, matrix in self.terms.items() if matrix.any()}

    @classmethod
    def of(cls, leaf: Leaf) -> Affine:
        """A leaf itself."""
        return cls({leaf: np.eye(leaf.width)}, np.zeros(leaf.width))

    @property
    def width(self) -> int:
        """The number of its features."""
        return len(self.bias)

    @property
    def signs(self) -> dict[Leaf | None, float] | None:
        """The signs of a sum of leaves, `{leaf: +1 or -1, None: 1 if 1 is added}`; None for another function."""
        signs: dict[Leaf | None, float] = {leaf: 1 if matrix[0, 0] > 0 else -1 for leaf, matrix in self.terms.items()}
        if any(not np.array_equal(matrix, signs[leaf] * np.eye(leaf.width)) for leaf, matrix in self.terms.items()):
            return None
        if self.bias.any():
            signs[None] = 1
        return signs if (self.bias == signs.get(None, 0)).all() else None

    @property
    def only(self) -> Leaf | None:
        """The leaf, if the function is one leaf and nothing else; else None."""
        signs = self.signs or {}
        return next(iter(signs)) if [*signs.values()] == [1] else None

    def plus(self, other: Affine) -> Affine:
        """The sum of two of the same width."""
        leaves = {**self.terms, **other.terms}
        terms = {leaf: np.add(self.terms.get(leaf, 0.0), other.terms.get(leaf, 0.0)) for leaf in leaves}
        return Affine(terms, self.bias + other.bias)

    def times(self, matrix: ConstantArray) -> Affine:
        """The product with a matrix `[width, new width]`."""
        return Affine({leaf: own @ matrix for leaf, own in self.terms.items()}, self.bias @ matrix)

    def scaled(self, numbers: ConstantArray | float) -> Affine:
        """The product with `numbers` `[width]`, one for each feature, or with one number."""
        return Affine({leaf: own * numbers for leaf, own in self.terms.items()}, self.bias * numbers)

    def same(self, other: Affine) -> bool:
        """Whether two are the same function."""
        return (
            self.terms.keys() == other.terms.keys()
            and np.array_equal(self.bias, other.bias)
            and all(np.array_equal(matrix, other.terms[leaf]) for leaf, matrix in self.terms.items())
        )


class Body:
    """The values of a loop's body, each computed at its first use."""

    def __init__(self, nodes: Sequence[NodeProto], known: Mapping[str, ConstantArray]) -> None:
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._values: dict[str, Affine | ConstantArray] = dict(known)

    def input(self, name: str, width: int) -> Leaf:
        """Adds a value that the body takes: a step or a state, `[rows, width]`."""
        leaf = Leaf("input", width)
        self._values[name] = Affine.of(leaf)
        return leaf

    def value(self, name: str) -> Affine | ConstantArray:
        """A value by its name: a function `[rows, width]`, or a constant of any shape.

        Ends with `NotACell` if it is computed by an operator that no cell has.
        """
        if name not in self._values:
            node = _present(self._producers.get(name))
            results = _computed(node, [self.value(operand) if operand else None for operand in node.input])
            self._values.update(zip(node.output, results, strict=False))
        _require(name in self._values)
        return self._values[name]

    def function(self, name: str) -> Affine | None:
        """A value by its name as a function; None for a constant, or for an operator that cells do not have."""
        try:
            value = self.value(name)
        except NotACell:
            return None
        return value if isinstance(value, Affine) else None

    def names_of(self, function: Affine) -> frozenset[str]:
        """The names of all values that are this function."""
        functions = ((name, self.function(name)) for name in [*self._values, *self._producers])
        return frozenset(name for name, value in functions if value is not None and value.same(function))


ACTIVATIONS: Final[Mapping[str, tuple[tuple[str, float], ...]]] = {
    "Sigmoid": (),
    "Tanh": (),
    "Relu": (),
    "Softsign": (),
    "Softplus": (),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "Elu": (("alpha", 1.0),),
    "LeakyRelu": (("alpha", 0.01),),
    "ThresholdedRelu": (("alpha", 1.0),),
}
"""The activations that recurrent layers take, with the numbers that they have by default."""

_ROUNDING: Final = 2.0**-23
_AT_MOST: Final = "at most"  # the activation `min(x, bound)`, a part of a hard sigmoid

_Inputs = Sequence[Affine | ConstantArray | None]


def _computed(node: NodeProto, inputs: _Inputs) -> Sequence[Affine | ConstantArray]:
    """The outputs of a node.

    Ends with `NotACell` if cells have no such operator.
    """
    kind = node.op_type
    attributes = attributes_of(node)
    if kind == "Constant" and "value" in attributes:
        return [numpy_helper.to_array(attributes["value"])]
    if not any(isinstance(each, Affine) for each in inputs):
        return _present(run_node(node, [each for each in inputs if not isinstance(each, Affine)]))
    if kind in ACTIVATIONS:
        numbers = tuple((name, float(attributes.get(name, default))) for name, default in ACTIVATIONS[kind])
        return [_activated(kind, _affine(inputs[0]), numbers)]
    if kind in _MOVES:
        return _moved(node, inputs)
    _require(kind in _RULES)
    return [_RULES[kind](attributes, inputs)]


def _activated(kind: str, inner: Affine, numbers: tuple[tuple[str, float], ...] = ()) -> Affine:
    """An activation of a function, with the activation's numbers by name."""
    return Affine.of(Leaf(kind, inner.width, (inner,), numbers))


def _affine(value: Affine | ConstantArray | None, width: int = 0) -> Affine:
    """A value as a function of this width; a constant is one of no leaf.

    Raises:
        NotACell: It is missing, or a constant of another width.
    """
    if isinstance(value, Affine):
        return value if value.width == width or not width else value.times(np.ones((1, width)))
    if value is None or value.size not in (1, width) or (value.ndim and value.shape[-1] != value.size):
        raise NotACell
    return Affine({}, np.broadcast_to(value.astype(np.float64).reshape(-1), (width,)).copy())


def _pair(inputs: _Inputs) -> tuple[Affine, Affine]:
    """Two inputs as functions of the same width.

    Ends with `NotACell` if they have different widths.
    """
    widths = {value.width for value in inputs if isinstance(value, Affine)}
    widths |= {value.shape[-1] for value in inputs if isinstance(value, np.ndarray) and value.ndim}
    _require(len(widths - {1}) <= 1)
    first, second = (_affine(value, max(widths)) for value in inputs)
    return first, second


def _constant(value: Affine | ConstantArray | None, rank: int | None = None) -> ConstantArray:
    """An input that must be a constant, and of this rank if one is given.

    Raises:
        NotACell: The input is missing, is computed from steps or states, or has another rank.
    """
    if not isinstance(value, np.ndarray) or rank not in (None, value.ndim):
        raise NotACell
    return value


def _sum(inputs: _Inputs, sign: float) -> Affine:
    """The first input plus `sign` times the second."""
    first, second = _pair(inputs)
    return first.plus(second.scaled(sign))


def _multiplied(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The product of two functions, element by element.

    1. A constant times a function: the function, scaled.
    2. A leaf times a sum of at most two leaves: the sum of products of leaves.
    3. Else a leaf of its own.
    """
    first, second = _pair(inputs)
    for value, factor in ((first, second), (second, first)):
        if not factor.terms:
            product = value.scaled(factor.bias)
            # A factor that differs from 1 by rounding, such as 6 times a sixth in float32, is 1.
            terms = {leaf: np.where(np.abs(own - 1) < _ROUNDING, 1.0, own) for leaf, own in product.terms.items()}
            return Affine(terms, product.bias)
    signs, other_signs = first.signs, second.signs
    if signs is None or other_signs is None or len(signs) * len(other_signs) > 2:
        return Affine.of(Leaf("product", first.width, (first, second)))
    total = Affine({}, np.zeros(first.width))
    for (leaf, sign), (other_leaf, other_sign) in itertools.product(signs.items(), other_signs.items()):
        factors = [factor for factor in (leaf, other_leaf) if factor is not None]  # None is the number 1
        term = factors[0] if len(factors) == 1 else Leaf("product", first.width, (*map(Affine.of, factors),))
        total = total.plus(Affine.of(term).scaled(sign * other_sign))
    return total


def _divided(attributes: Attributes, inputs: _Inputs) -> Affine:
    """A function divided by constants that are not 0.

    Ends with `NotACell` if the divisor is not constant, or 0.
    """
    dividend, divisor = _pair(inputs)
    _require(not divisor.terms and divisor.bias.all())
    return dividend.scaled(1.0 / divisor.bias)


def _product(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The outputs of MatMul and Gemm.

    Raises:
        NotACell: The first factor is no affine function, or is transposed.
    """
    if not isinstance(inputs[0], Affine) or attributes.get("transA", 0):
        raise NotACell
    weights = _constant(inputs[1], 2).astype(np.float64)
    result = inputs[0].times(weights.T if attributes.get("transB", 0) else weights).scaled(attributes.get("alpha", 1.0))
    if len(inputs) > 2 and inputs[2] is not None:
        result = result.plus(_affine(inputs[2], result.width).scaled(attributes.get("beta", 1.0)))
    return result


_MOVES: Final = frozenset({"Concat", "Gather", "Slice", "Split"})
"""Operators that move features."""


def _moved(node: NodeProto, inputs: _Inputs) -> list[Affine]:
    """The outputs of an operator that moves features. It is run on the positions of the features, in two rows.

    Ends with `NotACell` if it also moves rows, joins constants, or has indices that are not constant.
    """
    count = len(inputs) if node.op_type == "Concat" else 1
    values = [each for each in inputs[:count] if isinstance(each, Affine)]
    _require(len(values) == count)
    ends = np.cumsum([value.width for value in values])
    rows = np.arange(2 * ends[-1]).reshape(2, -1)
    constants = [None if each is None else _constant(each) for each in inputs[count:]]
    results = _present(run_node(node, [*np.split(rows, ends[:-1], axis=1), *constants]))
    _require(all(moved.ndim == 2 and np.array_equal(moved, moved[:1] + rows[:, :1]) for moved in results))
    joined = Affine({}, np.zeros(ends[-1]))
    for value, end in zip(values, ends, strict=True):
        joined = joined.plus(value.times(np.eye(value.width, ends[-1], end - value.width)))
    return [joined.times(np.eye(joined.width)[:, positions[0]]) for positions in results]


def _clipped(attributes: Attributes, inputs: _Inputs) -> Affine:
    """A value between 0 and a constant: a hard sigmoid.

    Ends with `NotACell` if the bounds are others.
    """
    low, high = (float(_constant(bound).item()) for bound in (*inputs[1:], None, None)[:2])
    _require(low == 0)
    return _hard_sigmoid(_affine(inputs[0]), high)


def _hard_sigmoid(value: Affine, high: float) -> Affine:
    """`high * HardSigmoid(x / high)`, which is `min(max(x, 0), high)`; the bound is positive and finite."""
    _require(0 < high < np.inf)
    return _activated("HardSigmoid", value.scaled(1.0 / high), (("alpha", 1.0), ("beta", 0.0))).scaled(high)


def _bounded(kind: str, inputs: _Inputs) -> Affine:
    """`min(x, bound)` or `max(x, 0)`; the minimum of such a maximum, or the reverse, is a hard sigmoid.

    Ends with `NotACell` if there are three inputs, or the lower bound is not 0.
    """
    _require(len(inputs) == 2)
    function, constant = inputs if isinstance(inputs[0], Affine) else inputs[::-1]
    value, bound = _affine(function), float(_constant(constant).item())
    leaf = value.only
    _require(kind != "Relu" or bound == 0)
    if leaf is not None and {kind, leaf.kind} == {"Relu", _AT_MOST}:
        return _hard_sigmoid(leaf.operands[0], max([bound, *dict(leaf.numbers).values()]))
    return _activated(kind, value, (("bound", bound),) if kind == _AT_MOST else ())


def _selected(attributes: Attributes, inputs: _Inputs) -> Affine:
    """One of two values, by a constant condition.

    Ends with `NotACell` if the condition is not constant, or true for some features only.
    """
    condition = _constant(inputs[0])
    _require(condition.all() or not condition.any())
    widths = [each.width for each in inputs[1:] if isinstance(each, Affine)]
    return _affine(inputs[1 if condition.all() else 2], max(widths))


_RULES: Final[Mapping[str, Callable[[Attributes, _Inputs], Affine]]] = {
    "Add": lambda _, inputs: _sum(inputs, 1.0),
    "Cast": lambda _, inputs: _affine(inputs[0]),
    "Clip": _clipped,
    "Div": _divided,
    "Gemm": _product,
    "Identity": lambda _, inputs: _affine(inputs[0]),
    "MatMul": _product,
    "Max": lambda _, inputs: _bounded("Relu", inputs),
    "Min": lambda _, inputs: _bounded(_AT_MOST, inputs),
    "Mul": _multiplied,
    "Neg": lambda _, inputs: _affine(inputs[0]).scaled(-1.0),
    "Sub": lambda _, inputs: _sum(inputs, -1.0),
    "Where": _selected,
}
