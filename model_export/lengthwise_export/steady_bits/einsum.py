"""Einsum, which onnxruntime computes by the same sums and products, in orders that depend on the batch.

It becomes the ReduceSum, the Transpose and the MatMul that it stands for. Those get rewrites of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from lengthwise_export.steady_bits.graph_facts import GraphFacts, MeasuredAxis
from lengthwise_export.steady_bits.replacement import LANES, PART, Replacement

_MAX_OPERANDS: Final = 2


def expanded_einsum(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """An Einsum of one or two values as sums, transpositions and one product.

    It stays if it has an ellipsis, a diagonal, or more than one letter that is summed over in both values.
    """
    letters = _letters(node)
    values = [value for value in node.inputs if value is not None]
    if letters is None or len(values) != len(letters) - 1:
        return None
    sizes: dict[str, MeasuredAxis] = {}
    for word, value in zip(letters, values, strict=False):
        axes = facts.axes(value)
        if axes is None or len(axes) != len(word):
            return None
        sizes |= dict(zip(word, axes, strict=True))
    *words, out = letters
    if len(words) == _MAX_OPERANDS and facts.is_constant(values[0]):
        words, values = words[::-1], values[::-1]
    new = Replacement(node)
    is_summed = [bool(_alone(words, place, out)) for place in range(len(words))]
    for place, word in enumerate(words):
        if over := _alone(words, place, out):
            values[place] = new.add("ReduceSum", values[place], new.constant([*map(word.index, over)]), keepdims=0)
            words[place] = "".join(letter for letter in word if letter not in over)
    if len(words) == 1:
        return new.gives(_in_order(new, values[0], words[0], out)) if every or is_summed[0] else None
    product = _EinsumProduct.of(words, out)
    if product is None or not product.is_possible(is_constant=facts.is_constant(values[1])):
        return None
    if not every and not any(is_summed) and not product.may_lose_bits(sizes):
        return None
    return new.gives(product.computed(new, values))


def _letters(node: ir.Node) -> list[str] | None:
    """The letters of the values and of the result, without spaces; None for an equation of another form."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    before, arrow, out = equation.partition("->")
    words = [*before.split(","), out]
    plain = all(word.isalpha() and len(set(word)) == len(word) for word in words)
    return words if arrow and plain and len(words) <= _MAX_OPERANDS + 1 else None


def _alone(words: Sequence[str], place: int, out: str) -> str:
    """The letters of one value that neither the other value nor the result has."""
    others = {letter for other, word in enumerate(words) if other != place for letter in word}
    return "".join(letter for letter in words[place] if letter not in others and letter not in out)


def _in_order(new: Replacement, value: ir.Value, word: str, out: str) -> ir.Value:
    return value if word == out else new.add("Transpose", value, perm=[word.index(letter) for letter in out])


def _with_axes(new: Replacement, value: ir.Value, letters: Mapping[int, str]) -> ir.Value:
    """The value with an axis of size one wherever it has no letter."""
    missing = [axis for axis, letter in letters.items() if not letter]
    return new.add("Unsqueeze", value, new.constant(missing)) if missing else value


@dataclass(frozen=True, slots=True)
class _EinsumProduct:
    """The letters of a product of two values, by their part in it."""

    words: tuple[str, str]
    out: str
    batch: str  # Those of both values and the result
    inner: str  # Those of both values that are summed over
    left: str  # Those of the first value alone
    right: str  # Those of the second value alone

    @classmethod
    def of(cls, words: Sequence[str], out: str) -> _EinsumProduct | None:
        """The parts of the letters; None if the result has a letter of no value."""
        first, second = words
        if not set(out) <= {*first, *second}:
            return None
        return cls(
            (first, second),
            out,
            batch="".join(letter for letter in out if letter in first and letter in second),
            inner="".join(letter for letter in first if letter in second and letter not in out),
            left="".join(letter for letter in out if letter not in second),
            right="".join(letter for letter in out if letter not in first),
        )

    def is_possible(self, *, is_constant: bool) -> bool:
        """Whether it is one MatMul, whose second value is constant or not."""
        rows = len(self.left) <= 1 or (is_constant and not self.batch)
        return len(self.inner) <= 1 and len(self.right) <= 1 and rows

    def may_lose_bits(self, sizes: Mapping[str, MeasuredAxis]) -> bool:
        """Whether a product of these sizes may depend on the batch."""
        if not self.inner:
            return False
        inner = sizes[self.inner]
        if not inner.fixed:
            return inner.size % LANES != 0 and not (self.left and self.right)
        if any(not sizes[letter].fixed for letter in self.right):
            return inner.size > PART
        return not self.batch and math.prod(sizes[letter].size for letter in self.left) == 1

    def computed(self, new: Replacement, values: Sequence[ir.Value]) -> ir.Value:
        first = _in_order(new, values[0], self.words[0], self.batch + self.left + self.inner)
        second = _in_order(new, values[1], self.words[1], self.batch + self.inner + self.right)
        first = _with_axes(new, first, {-2: self.left, -1: self.inner})
        second = _with_axes(new, second, {-2: self.inner, -1: self.right})
        product = new.add("MatMul", first, second)
        added = [axis for axis, letters in ((-2, self.left), (-1, self.right)) if not letters]
        if added:
            product = new.add("Squeeze", product, new.constant(added))
        return _in_order(new, product, self.batch + self.left + self.right, self.out)
