"""Values of a loop's body as affine functions of its step and its states, and the operators of recurrent cells on them.

Every value of the body is written as an affine function of *leaves*: the step, the states, products of two values, and
activations of one value. How its author joined, split or transposed the weights does not matter then.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from lengthwise_export.mending.values import computed
from lengthwise_export.onnx_graphs.protos import attributes_of

ConstantArray = NDArray[Any]


class NotACell(Exception):
    """The body is no recurrent cell that is known."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value that is no affine function of others: a step, a state, a product or an activation."""

    kind: str  # `input`, `product`, or the name of an activation
    width: int
    operands: tuple[Affine, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()  # The activation's numbers by name, such as its `alpha`


@dataclass(frozen=True, eq=False)
class Affine:
    """`sum of leaf @ matrix, plus bias`, of shape `[rows, width]`."""

    terms: Mapping[Leaf, ConstantArray]  # The matrix `[width of the leaf, width]` of each leaf
    bias: ConstantArray  # `[width]`

    @classmethod
    def of(cls, leaf: Leaf) -> Affine:
        """A leaf itself."""
        return cls({leaf: np.eye(leaf.width)}, np.zeros(leaf.width))

    @property
    def width(self) -> int:
        """The number of its features."""
        return len(self.bias)

    @property
    def only(self) -> Leaf | None:
        """The leaf that it is, with nothing added; None if it is more."""
        leaves = self.summed
        return leaves[0] if leaves is not None and len(leaves) == 1 else None

    @property
    def summed(self) -> list[Leaf] | None:
        """The leaves that it is the plain sum of; None if it is another function of them."""
        matrices = self.terms.values()
        plain = all(len(each) == each.shape[1] and np.array_equal(each, np.eye(len(each))) for each in matrices)
        return [*self.terms] if plain and not self.bias.any() else None

    def plus(self, other: Affine) -> Affine:
        """The sum of two of the same width."""
        terms = dict(self.terms)
        for leaf, matrix in other.terms.items():
            terms[leaf] = terms[leaf] + matrix if leaf in terms else matrix
        return Affine({leaf: matrix for leaf, matrix in terms.items() if matrix.any()}, self.bias + other.bias)

    def times(self, matrix: ConstantArray) -> Affine:
        """The product with a matrix `[width, new width]`."""
        products = {leaf: own @ matrix for leaf, own in self.terms.items()}
        return Affine({leaf: own for leaf, own in products.items() if own.any()}, self.bias @ matrix)

    def scaled(self, numbers: ConstantArray | float) -> Affine:
        """The product with a number for each feature."""
        terms = {leaf: own * numbers for leaf, own in self.terms.items()}
        return Affine({leaf: own for leaf, own in terms.items() if own.any()}, self.bias * numbers)

    def same(self, other: Affine) -> bool:
        """Whether two are the same function."""
        return (
            self.terms.keys() == other.terms.keys()
            and np.array_equal(self.bias, other.bias)
            and all(np.array_equal(matrix, other.terms[leaf]) for leaf, matrix in self.terms.items())
        )


class Body:
    """Computes the values of a loop's body, each when it is asked for."""

    def __init__(self, nodes: Sequence[NodeProto], known: Mapping[str, ConstantArray]) -> None:
        self._producers = {name: node for node in nodes for name in node.output if name}
        self._values: dict[str, Affine | ConstantArray] = dict(known)

    def input(self, name: str, width: int) -> Leaf:
        """Adds a step or a state, `[rows, width]`."""
        leaf = Leaf("input", width)
        self._values[name] = Affine.of(leaf)
        return leaf

    def value(self, name: str) -> Affine | ConstantArray:
        """A value by its name; `NotACell` if no cell has its operator."""
        if name not in self._values:
            node = self._producers.get(name)
            if node is None:
                raise NotACell
            results = _computed(node, [self.value(each) if each else None for each in node.input])
            self._values.update(zip(node.output, results, strict=False))
        if name not in self._values:
            raise NotACell
        return self._values[name]

    def function(self, name: str) -> Affine | None:
        """A value by its name; None if it is a constant, or no cell has its operator."""
        try:
            value = self.value(name)
        except NotACell:
            return None
        return value if isinstance(value, Affine) else None

    def names_of(self, wanted: Affine) -> list[str]:
        """The names of all values that are this function."""
        functions = ((name, self.function(name)) for name in [*self._values, *self._producers])
        return [name for name, value in functions if value is not None and value.same(wanted)]


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

_Inputs = Sequence[Affine | ConstantArray | None]
_Said = Mapping[str, Any]


def _computed(node: NodeProto, inputs: _Inputs) -> Sequence[Affine | ConstantArray]:
    """The outputs of a node; `NotACell` if cells have no such operator."""
    kind = node.op_type
    said = attributes_of(node)
    if kind == "Constant" and "value" in said:
        return [numpy_helper.to_array(said["value"])]
    if not any(isinstance(each, Affine) for each in inputs):
        constants = computed(node, [each for each in inputs if not isinstance(each, Affine)])
        if constants is None:
            raise NotACell
        return constants
    if kind in ACTIVATIONS:
        numbers = tuple((name, float(said.get(name, default))) for name, default in ACTIVATIONS[kind])
        return [_activated(kind, _affine(inputs[0]), numbers)]
    if kind not in _RULES:
        raise NotACell
    return _RULES[kind](said, inputs, len(node.output))


def _activated(kind: str, inner: Affine, numbers: tuple[tuple[str, float], ...] = ()) -> Affine:
    return Affine.of(Leaf(kind, inner.width, (inner,), numbers))


def _affine(value: Affine | ConstantArray | None, width: int = 0) -> Affine:
    """A value as a function of this width; a constant is one of no leaf."""
    if isinstance(value, Affine):
        return value if value.width == width or not width else value.times(np.ones((1, width)))
    if value is None or value.size not in (1, width) or (value.ndim and value.shape[-1] != value.size):
        raise NotACell
    return Affine({}, np.broadcast_to(value.astype(np.float64).reshape(-1), (width,)).copy())


def _pair(inputs: _Inputs) -> tuple[Affine, Affine]:
    widths = {each.width for each in inputs if isinstance(each, Affine)}
    widths |= {each.shape[-1] for each in inputs if isinstance(each, np.ndarray) and each.ndim}
    if len(widths - {1}) > 1:
        raise NotACell
    one, other = (_affine(each, max(widths)) for each in inputs)
    return one, other


def _constant(value: Affine | ConstantArray | None) -> ConstantArray:
    if not isinstance(value, np.ndarray):
        raise NotACell
    return value


def _matrix(value: Affine | ConstantArray | None) -> ConstantArray:
    array = _constant(value)
    if array.ndim != 2:
        raise NotACell
    return array.astype(np.float64)


def _sum(inputs: _Inputs, sign: float) -> list[Affine]:
    one, other = _pair(inputs)
    return [one.plus(other.scaled(sign))]


def _multiplied(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    one, other = _pair(inputs)
    for value, factor in ((one, other), (other, one)):
        if not factor.terms:
            return [_snapped(value.scaled(factor.bias))]
    return [Affine.of(Leaf("product", one.width, (one, other)))]


def _snapped(value: Affine) -> Affine:
    """The function with 1 in the place of factors that are 1 but for the rounding of float32: 6 times a sixth."""
    terms = {leaf: np.where(np.abs(own - 1) < _ROUNDING, 1.0, own) for leaf, own in value.terms.items()}
    return Affine(terms, value.bias)


def _divided(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    one, other = _pair(inputs)
    if other.terms or not other.bias.all():
        raise NotACell
    return [one.scaled(1.0 / other.bias)]


def _product(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    if not isinstance(inputs[0], Affine):
        raise NotACell
    return [inputs[0].times(_matrix(inputs[1]))]


def _gemm(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    if not isinstance(inputs[0], Affine) or said.get("transA", 0):
        raise NotACell
    weights = _matrix(inputs[1])
    result = inputs[0].times(weights.T if said.get("transB", 0) else weights).scaled(said.get("alpha", 1.0))
    if len(inputs) > 2 and inputs[2] is not None:
        result = result.plus(_affine(inputs[2], result.width).scaled(said.get("beta", 1.0)))
    return [result]


def _is_last(axis: int) -> bool:
    return axis in (1, -1)


def _columns(value: Affine, places: ConstantArray) -> Affine:
    return value.times(np.eye(value.width)[:, places])


def _split(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    value = _affine(inputs[0])
    sizes = said.get("split")
    if sizes is None and len(inputs) > 1 and inputs[1] is not None:
        sizes = _constant(inputs[1]).tolist()
    sizes = sizes or [value.width // count] * count
    if not _is_last(said.get("axis", 0)) or sum(sizes) != value.width:
        raise NotACell
    ends = np.cumsum([0, *sizes])
    return [_columns(value, np.arange(start, end)) for start, end in itertools.pairwise(ends)]


def _slice(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    value = _affine(inputs[0])
    given = [said.get(name) for name in ("starts", "ends", "axes", "steps")]
    if given[0] is None:
        given = [_constant(each).reshape(-1).tolist() for each in inputs[1:] if each is not None]
    starts, ends, *more = [each for each in given if each is not None]
    axes = more[0] if more else range(len(starts))
    steps = more[1] if len(more) > 1 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if _is_last(axis):
            value = _columns(value, np.arange(value.width)[slice(start, end, step)])
        elif start != 0 or end < np.iinfo(np.int32).max or step != 1:  # of the rows
            raise NotACell
    return [value]


def _joined(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    values = [_affine(each) for each in inputs]
    if not _is_last(said["axis"]):
        raise NotACell
    width, at = sum(value.width for value in values), 0
    whole = Affine({}, np.zeros(width))
    for value in values:
        whole = whole.plus(value.times(np.eye(value.width, width, at)))
        at += value.width
    return [whole]


def _clipped(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    bounds = [None if each is None else float(_constant(each).item()) for each in inputs[1:]]
    low, high = (*bounds, None, None)[:2]
    low, high = said.get("min", low), said.get("max", high)
    if low != 0 or high is None:
        raise NotACell
    return [_hard_sigmoid(_affine(inputs[0]), high)]


def _hard_sigmoid(value: Affine, high: float) -> Affine:
    if not 0 < high < np.inf:
        raise NotACell
    return _activated("HardSigmoid", value.scaled(1.0 / high), (("alpha", 1.0), ("beta", 0.0))).scaled(high)


def _at_most(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    """The smaller of a value and a number."""
    value, bound = _bounded(inputs)
    leaf = value.only
    if leaf is not None and leaf.kind == "Relu":
        return [_hard_sigmoid(leaf.operands[0], bound)]
    return [_activated("at most", value, (("bound", bound),))]


def _at_least(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    """The larger of a value and 0."""
    value, bound = _bounded(inputs)
    leaf = value.only
    if bound != 0:
        raise NotACell
    if leaf is not None and leaf.kind == "at most":
        return [_hard_sigmoid(leaf.operands[0], leaf.numbers[0][1])]
    return [_activated("Relu", value)]


def _bounded(inputs: _Inputs) -> tuple[Affine, float]:
    if len(inputs) != 2:
        raise NotACell
    one, other = inputs if isinstance(inputs[0], Affine) else inputs[::-1]
    return _affine(one), float(_constant(other).item())


def _chosen(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    condition = _constant(inputs[0])
    if condition.all() or not condition.any():
        widths = [each.width for each in inputs[1:] if isinstance(each, Affine)]
        return [_affine(inputs[1 if condition.all() else 2], max(widths))]
    raise NotACell


def _unchanged(said: _Said, inputs: _Inputs, count: int) -> list[Affine]:
    return [_affine(inputs[0])]


_RULES: Final[Mapping[str, Callable[[_Said, _Inputs, int], Sequence[Affine]]]] = {
    "Add": lambda said, inputs, count: _sum(inputs, 1.0),
    "Cast": _unchanged,
    "Clip": _clipped,
    "Concat": _joined,
    "Div": _divided,
    "Gemm": _gemm,
    "Identity": _unchanged,
    "MatMul": _product,
    "Max": _at_least,
    "Min": _at_most,
    "Mul": _multiplied,
    "Neg": lambda said, inputs, count: [_affine(inputs[0]).scaled(-1.0)],
    "Slice": _slice,
    "Split": _split,
    "Sub": lambda said, inputs, count: _sum(inputs, -1.0),
    "Where": _chosen,
}
