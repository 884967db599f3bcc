"""Values of a loop's body as affine functions of its step and its states, and the operators of recurrent cells on them.

Every value of the body is written as an affine function of *leaves*: the step, the states, products of two values, and
activations of one value. How its author joined, split or transposed the weights does not matter then. Products of sums
of leaves are written as sums of products: `n + z * (h - n)` is the same as `z * h + (1 - z) * n`.

    tanh(x @ W + h @ U + b)        Affine.of(Leaf("Tanh", operands=(inner,)))
        inner                      Affine({x: W, h: U}, bias=b), where x and h are leaves of the kind `input`

A *function* is an `Affine`, of shape `[rows, width]`; its *width* is the number of features. Where a body cannot be
written in this way, `NotFound` ends the attempt, also in functions that only call others which raise it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from lengthwise_export.mending.patterns import NotFound, require
from lengthwise_export.mending.values import Attributes, run_node
from lengthwise_export.onnx_graphs.protos import attributes_of

ConstantArray = NDArray[Any]


_T = TypeVar("_T")


def _present(value: _T | None) -> _T:
    """The value, which is not None.

    Raises:
        NotFound: The value is None.
    """
    if value is None:
        raise NotFound
    return value


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value that is no affine function of others: an input of the body, a product or an activation."""

    kind: str  # `input` (a step, a state, other data), `product`, an activation's operator type, or `_AT_MOST`
    width: int  # The number of its features
    # The two factors of a product, or what an activation is applied to; of a GRU's new state also what its reset gate
    # multiplies
    operands: tuple[Affine, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()  # The activation's numbers by name, such as its `alpha`


@dataclass(eq=False)
class Affine:
    """A function of shape `[rows, width]`: the sum of all `leaf @ matrix`, plus a bias."""

    terms: Mapping[Leaf, ConstantArray]  # The matrix `[width of the leaf, width]` of each leaf
    bias: ConstantArray  # `[width]`

    def __post_init__(self) -> None:
        """Drops the leaves whose matrix is zero."""
        self.terms = {leaf: matrix for leaf, matrix in self.terms.items() if matrix.any()}

    @classmethod
    def of(cls, leaf: Leaf) -> Affine:
        """The function that is a leaf itself."""
        return cls({leaf: np.eye(leaf.width)}, np.zeros(leaf.width))

    @property
    def width(self) -> int:
        """The number of its features."""
        return len(self.bias)

    @property
    def signs(self) -> dict[Leaf | None, float] | None:
        """The signs of the terms, if the function only adds and subtracts leaves, and adds the number 1 or nothing.

        For `z - h + 1` these are `{z: 1, h: -1, None: 1}`, where the key None stands for the number 1.

        Returns:
            The signs; None for a function with another matrix or bias.
        """
        signs: dict[Leaf | None, float] = {leaf: 1 if matrix[0, 0] > 0 else -1 for leaf, matrix in self.terms.items()}
        has_other_matrix = any(
            not np.array_equal(matrix, signs[leaf] * np.eye(leaf.width)) for leaf, matrix in self.terms.items()
        )
        is_one = bool((self.bias == 1).all())
        if has_other_matrix or (self.bias.any() and not is_one):
            return None
        return signs | {None: 1} if is_one else signs

    @property
    def only(self) -> Leaf | None:
        """The leaf, if the function is that leaf itself; else None."""
        signs = self.signs or {}
        return next(iter(signs)) if [*signs.values()] == [1] else None

    def plus(self, other: Affine) -> Affine:
        """The sum of two functions of the same width."""
        leaves = {**self.terms, **other.terms}
        terms = {leaf: np.add(self.terms.get(leaf, 0.0), other.terms.get(leaf, 0.0)) for leaf in leaves}
        return Affine(terms, self.bias + other.bias)

    def times(self, factor: ConstantArray) -> Affine:
        """The product with a matrix `[width, new width]`."""
        return Affine({leaf: matrix @ factor for leaf, matrix in self.terms.items()}, self.bias @ factor)

    def scaled(self, factors: ConstantArray | float) -> Affine:
        """The function times one number, or times `[width]`: one number for each feature."""
        return Affine({leaf: matrix * factors for leaf, matrix in self.terms.items()}, self.bias * factors)

    def same(self, other: Affine) -> bool:
        """Whether two functions have the same leaves, matrices and bias."""
        return (
            self.terms.keys() == other.terms.keys()
            and np.array_equal(self.bias, other.bias)
            and all(np.array_equal(matrix, other.terms[leaf]) for leaf, matrix in self.terms.items())
        )


class Body:
    """The values of a loop's body by name, each computed at its first use."""

    def __init__(self, nodes: Sequence[NodeProto], known: Mapping[str, ConstantArray]) -> None:
        """Begins with the nodes of the body, and with values that are known: constants of any shape."""
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._values: dict[str, Affine | ConstantArray] = dict(known)

    def input(self, name: str, width: int) -> Leaf:
        """Adds a step, a state or other data `[rows, width]` that the body takes, and returns it as a leaf."""
        leaf = Leaf("input", width)
        self._values[name] = Affine.of(leaf)
        return leaf

    def value(self, name: str) -> Affine | ConstantArray:
        """A value by its name: a function, or a constant of any shape.

        Raises:
            NotFound: It is computed by an operator that no cell has.
        """  # noqa: DOC502 - `_present` and `require` raise it
        if name not in self._values:
            node = _present(self._producers.get(name))
            results = _outputs_of(node, [self.value(operand) if operand else None for operand in node.input])
            self._values.update(zip(node.output, results, strict=False))
        require(name in self._values)
        return self._values[name]

    def affine(self, name: str) -> Affine | None:
        """The affine form of a value; None if it is a constant, or comes from an operator that no cell has."""
        try:
            value = self.value(name)
        except NotFound:
            return None
        return value if isinstance(value, Affine) else None

    def names_of(self, function: Affine) -> frozenset[str]:
        """The names of all values of the body that are the same function as this one."""
        functions = {name: self.affine(name) for name in [*self._values, *self._producers]}
        return frozenset(name for name, value in functions.items() if value is not None and value.same(function))


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
"""The activations that ONNX's recurrent operators take, each with its numbers and their defaults."""

_ROUNDING: Final = 2.0**-23  # the relative rounding of float32
_AT_MOST: Final = "at most"  # the kind of a leaf `min(x, high)`, which is a part of a hard sigmoid

_Inputs = Sequence[Affine | ConstantArray | None]  # of a node: None for an optional input that is left out


def _outputs_of(node: NodeProto, inputs: _Inputs) -> Sequence[Affine | ConstantArray]:
    """The outputs of a node for these inputs: constants if all inputs are constant, else functions.

    Raises:
        NotFound: Cells have no such operator.
    """  # noqa: DOC502 - `_present` and `require` raise it
    kind = node.op_type
    attributes = attributes_of(node)
    if kind == "Constant" and "value" in attributes:
        return [numpy_helper.to_array(attributes["value"])]
    if not any(isinstance(value, Affine) for value in inputs):
        return _present(run_node(node, [value for value in inputs if not isinstance(value, Affine)]))
    if kind in ACTIVATIONS:
        numbers = tuple((name, float(attributes.get(name, default))) for name, default in ACTIVATIONS[kind])
        return [_activated(kind, _affine(inputs[0]), numbers)]
    if kind in _MOVES:
        return _moved(node, inputs)
    require(kind in _RULES)
    return [_RULES[kind](attributes, inputs)]


def _activated(kind: str, inner: Affine, numbers: tuple[tuple[str, float], ...] = ()) -> Affine:
    """The function `kind(inner)`; `kind` is an activation's type or `_AT_MOST`, `numbers` are its numbers by name."""
    return Affine.of(Leaf(kind, inner.width, (inner,), numbers))


def _affine(value: Affine | ConstantArray | None, width: int = 0) -> Affine:
    """A value as a function.

    Args:
        value: A function; one of width 1 is broadcast to `width`. Or a constant of size 1 or `width`: it becomes a
            function without leaves.
        width: The width of the result; 0 for that of the function.

    Raises:
        NotFound: The value is None, or a constant of another size.
    """
    if isinstance(value, Affine):
        return value if value.width == width or not width else value.times(np.ones((1, width)))
    if value is None or value.size not in (1, width) or (value.ndim and value.shape[-1] != value.size):
        raise NotFound
    return Affine({}, np.broadcast_to(value.astype(np.float64).reshape(-1), (width,)).copy())


def _pair(inputs: _Inputs) -> tuple[Affine, Affine]:
    """Two inputs as functions of the same width; a width of 1 is broadcast.

    Raises:
        NotFound: They have different widths.
    """  # noqa: DOC502 - `require` raises it
    widths = {value.width for value in inputs if isinstance(value, Affine)}
    widths |= {value.shape[-1] for value in inputs if isinstance(value, np.ndarray) and value.ndim}
    require(len(widths - {1}) <= 1)
    first, second = (_affine(value, max(widths)) for value in inputs)
    return first, second


def _constant(value: Affine | ConstantArray | None, rank: int | None = None) -> ConstantArray:
    """An input that has to be a constant; of `rank` axes, or of any number for None.

    Raises:
        NotFound: The input is missing, is computed from steps or states, or has another rank.
    """
    if not isinstance(value, np.ndarray) or rank not in (None, value.ndim):
        raise NotFound
    return value


def _sum(inputs: _Inputs, sign: float) -> Affine:
    """The output of an Add (`sign` is 1) or a Sub (-1): the first input plus `sign` times the second."""
    first, second = _pair(inputs)
    return first.plus(second.scaled(sign))


def _multiplied(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The output of a Mul, an elementwise product of two functions.

    1. One of them is constant: the other, scaled.
    2. One of them is more than a sum or difference of leaves and the number 1 (`signs`), or multiplied out they would
       be more than two products: a new leaf of the kind `product`, not multiplied out.
    3. Else one is a leaf or the number 1 and the other a sum of at most two of these, such as `n * (1 - z)`: the sum of
       one or two products, `n - n * z`.
    """
    first, second = _pair(inputs)
    # Case 1
    for value, factor in ((first, second), (second, first)):
        if not factor.terms:
            product = value.scaled(factor.bias)
            # Numbers that differ from 1 by rounding, such as 6 times a sixth in float32, become 1, as `signs` needs it.
            terms = {
                leaf: np.where(np.abs(matrix - 1) < _ROUNDING, 1.0, matrix) for leaf, matrix in product.terms.items()
            }
            return Affine(terms, product.bias)
    # Case 2
    first_signs, second_signs = first.signs, second.signs
    if first_signs is None or second_signs is None or len(first_signs) * len(second_signs) > 2:
        return Affine.of(Leaf("product", first.width, (first, second)))
    # Case 3
    total = Affine({}, np.zeros(first.width))
    for (first_leaf, first_sign), (second_leaf, second_sign) in itertools.product(
        first_signs.items(), second_signs.items()
    ):
        leaves = [leaf for leaf in (first_leaf, second_leaf) if leaf is not None]  # None is the number 1
        term = leaves[0] if len(leaves) == 1 else Leaf("product", first.width, (*map(Affine.of, leaves),))
        total = total.plus(Affine.of(term).scaled(first_sign * second_sign))
    return total


def _divided(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The output of a Div: a function divided by constants.

    Raises:
        NotFound: The divisor is not constant, or is 0 for a feature.
    """  # noqa: DOC502 - `require` raises it
    dividend, divisor = _pair(inputs)
    require(not divisor.terms and divisor.bias.all())
    return dividend.scaled(1.0 / divisor.bias)


def _product(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The output of a MatMul or a Gemm: a function times a constant matrix, plus a constant bias.

    Raises:
        NotFound: The first factor is a constant, or is transposed.
    """
    if not isinstance(inputs[0], Affine) or attributes.get("transA", 0):
        raise NotFound
    weights = _constant(inputs[1], 2).astype(np.float64)
    result = inputs[0].times(weights.T if attributes.get("transB", 0) else weights).scaled(attributes.get("alpha", 1.0))
    if len(inputs) > 2 and inputs[2] is not None:
        result = result.plus(_affine(inputs[2], result.width).scaled(attributes.get("beta", 1.0)))
    return result


_MOVES: Final = frozenset({"Concat", "Gather", "Slice", "Split"})
"""Operators that move features: join them, cut them, or change their order."""


def _moved(node: NodeProto, inputs: _Inputs) -> list[Affine]:
    """The outputs of an operator that joins features, cuts them, or changes their order.

    To find out which feature goes where, the node is run on numbers: each feature of its inputs is replaced by a number
    of its own, 0, 1, 2, ... The numbers in an output then say of which features it consists. The node gets two rows,
    the second with further numbers, to make sure that it does the same in each row.

    Raises:
        NotFound: It also moves rows, joins constants, or has indices that are not constant.
    """  # noqa: DOC502 - the functions that it calls raise it
    function_count = len(inputs) if node.op_type == "Concat" else 1  # the inputs after these are indices
    values = [value for value in inputs[:function_count] if isinstance(value, Affine)]
    require(len(values) == function_count)
    constants = [None if value is None else _constant(value) for value in inputs[function_count:]]
    ends = np.cumsum([value.width for value in values])
    rows = np.arange(2 * ends[-1]).reshape(2, -1)
    results = _present(run_node(node, [*np.split(rows, ends[:-1], axis=1), *constants]))
    require(all(moved.ndim == 2 and np.array_equal(moved, moved[:1] + rows[:, :1]) for moved in results))
    # All inputs side by side as one function, in the order of the numbers: each output takes its features from there.
    joined = Affine({}, np.zeros(ends[-1]))
    for value, end in zip(values, ends, strict=True):
        joined = joined.plus(value.times(np.eye(value.width, ends[-1], end - value.width)))
    return [joined.times(np.eye(joined.width)[:, moved[0]]) for moved in results]


def _clipped(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The output of a Clip from 0 to a constant: `min(max(x, 0), high)`."""
    value, low, high = (*inputs, None, None)[:3]
    return _bounded(_AT_MOST, [_bounded("Relu", [value, low]), high])


def _bounded(kind: str, inputs: _Inputs) -> Affine:
    """The output of a Max with the number 0, or of a Min with any constant `high`.

    1. `max(x, 0)` is the activation Relu.
    2. `min(x, high)` is a leaf of the kind `_AT_MOST`, which has the number `high`.
    3. A Min of a Max, or a Max of a Min, is a hard sigmoid: `min(max(x, 0), high)` and `max(min(x, high), 0)` are
       `high * HardSigmoid(x / high)` with the alpha 1 and the beta 0.

    Args:
        kind: `Relu` for a Max, `_AT_MOST` for a Min.
        inputs: The function and the constant, in either order.

    Raises:
        NotFound: There are three inputs, no bound is constant, the lower bound is not 0, or the upper one not positive
            and finite.
    """  # noqa: DOC502 - the functions that it calls raise it
    require(len(inputs) == 2)
    function, constant = inputs if isinstance(inputs[0], Affine) else inputs[::-1]
    value, bound = _affine(function), float(_constant(constant).item())
    require(kind != "Relu" or bound == 0)
    numbers = (("high", bound),) if kind == _AT_MOST else ()
    leaf = value.only
    if leaf is None or {kind, leaf.kind} != {"Relu", _AT_MOST}:
        return _activated(kind, value, numbers)
    high = dict(numbers + leaf.numbers)["high"]  # of this operator, or of the one before it
    require(0 < high < np.inf)
    return _activated("HardSigmoid", leaf.operands[0].scaled(1.0 / high), (("alpha", 1.0), ("beta", 0.0))).scaled(high)


def _selected(attributes: Attributes, inputs: _Inputs) -> Affine:
    """The output of a Where with a constant condition: one of its two values.

    Raises:
        NotFound: The condition is not constant, or true for some features only.
    """  # noqa: DOC502 - the functions that it calls raise it
    condition = _constant(inputs[0])
    require(condition.all() or not condition.any())
    widths = [value.width for value in inputs[1:] if isinstance(value, Affine)]
    return _affine(inputs[1 if condition.all() else 2], max(widths))


# By operator type: its output, from its attributes and inputs
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
