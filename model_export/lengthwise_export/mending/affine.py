"""Values of a loop's body as affine functions of its step and its states.

Every value of the body is written as an affine function of *leaves*: the step, the states, products of two values, and
activations of one value. How its author joined, split or transposed the weights does not matter then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        plain = all(_is_identity(matrix) for matrix in self.terms.values())
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


def _is_identity(matrix: ConstantArray) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix)))
