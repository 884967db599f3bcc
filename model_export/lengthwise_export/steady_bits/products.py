"""Products of values with values, whose order of addition depends on the sizes of their axes.

onnxruntime adds a product in parts. How many numbers are in a part depends on the number of columns, unless the right
side is constant; a product over at most 128 numbers is one part. A product of one row, or of one column, is computed by
another kernel, which depends on the number of steps modulo four. So is an RNN's product of one row.
"""

from __future__ import annotations

import itertools
from typing import Final

import onnx_ir as ir

from lengthwise_export.steady_bits.graph_facts import GraphFacts
from lengthwise_export.steady_bits.replacement import LANES, PART, Replacement


def rewritten_product(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """A MatMul in parts of `PART` numbers, or of two equal rows or columns, of which one is kept."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    first, second = facts.axes(left), facts.axes(right)
    if first is None or second is None or len(first) < 2 or len(second) < 2 or facts.is_constant(right):
        return None
    inner, rows, columns = first[-1], first[-2], second[-1]
    new = Replacement(node)
    if inner.fixed and inner.size > PART and not columns.fixed:
        return new.gives(_in_parts(new, left, right, (len(first), len(second)), inner.size))
    if not inner.fixed and (every or inner.size % LANES):
        single = (rows.fixed and rows.size == 1, columns.fixed and columns.size == 1)
        if any(single):
            return new.gives(_of_two(new, left, right, single))
    if len(first) == len(second) == 2 and not rows.fixed and rows.size == 1:
        return new.gives(_of_one_more_row(new, left, right))
    return None


def _in_parts(new: Replacement, left: ir.Value, right: ir.Value, ranks: tuple[int, int], inner: int) -> ir.Value:
    sizes = [PART] * (inner // PART) + ([inner % PART] if inner % PART else [])
    split = new.constant(sizes)
    lefts = new.add_outputs("Split", (left, split), len(sizes), axis=ranks[0] - 1)
    before = right.producer()
    perm = list(before.attributes["perm"].as_ints()) if before is not None and before.op_type == "Transpose" else []
    if before is not None and perm:
        # Each part is transposed, and not the whole: onnxruntime computes such a product without a transposition.
        parts = new.add_outputs("Split", (before.inputs[0], split), len(sizes), axis=perm[ranks[1] - 2])
        rights = [new.add("Transpose", part, perm=perm) for part in parts]
    else:
        rights = [*new.add_outputs("Split", (right, split), len(sizes), axis=ranks[1] - 2)]
    products = [new.add("MatMul", *pair) for pair in zip(lefts, rights, strict=True)]
    return list(itertools.accumulate(products, lambda total, part: new.add("Add", total, part)))[-1]


def _of_two(new: Replacement, left: ir.Value, right: ir.Value, single: tuple[bool, bool]) -> ir.Value:
    """The product with its one row twice, if it has one only, and its one column twice."""
    if single[0]:
        left = new.add("Concat", left, left, axis=-2)
    if single[1]:
        right = new.add("Concat", right, right, axis=-1)
    product = new.add("MatMul", left, right)
    axes = [axis for axis, is_single in zip((-2, -1), single, strict=True) if is_single]
    starts, ends = new.constant([0] * len(axes)), new.constant([1] * len(axes))
    return new.add("Slice", product, starts, ends, new.constant(axes))


def _of_one_more_row(new: Replacement, left: ir.Value, right: ir.Value) -> ir.Value:
    zero = new.constant([0])
    more = new.add("Concat", left, new.add("Slice", left, zero, new.constant([1]), zero), axis=0)
    return new.add("Slice", new.add("MatMul", more, right), zero, new.constant([-1]), zero)


_ROWS: Final = {0: 1, 4: 0, 5: 1}
"""The inputs of an RNN that have an axis of rows (X, sequence_lens, initial_h), and which axis that is."""
_ROWS_OF_OUTPUT: Final = (2, 1)  # the axis of rows of the outputs Y and Y_h


def rewritten_rnn(node: ir.Node, facts: GraphFacts, *, every: bool) -> Replacement | None:
    """An RNN over one more row, a copy of the first, so that it never runs with one row only."""
    if node.attributes.get_int("layout", 0):
        return None
    new = Replacement(node)
    zero, one, last = new.constant([0]), new.constant([1]), new.constant([-1])
    inputs = list(node.inputs)
    for place, axis in _ROWS.items():
        value = inputs[place] if place < len(inputs) else None
        if value is not None:
            first = new.add("Slice", value, zero, one, new.constant([axis]))
            inputs[place] = new.add("Concat", value, first, axis=axis)
    outputs = new.add_outputs("RNN", inputs, len(node.outputs))
    new.nodes[-1].attributes.update(node.attributes)
    kept = [
        new.add("Slice", output, zero, last, new.constant([axis]))
        for output, axis in zip(outputs, _ROWS_OF_OUTPUT, strict=False)
    ]
    return new.gives(*kept)
