"""Sums, products and functions, written so that no number's rounding depends on the batch. `convolutions` has the rest.

Sums and means   onnxruntime's ReduceSum and ReduceMean add in another order at another width, and for one row of
                 a few features. A product with ones adds the same numbers. The order of a product of two or more
                 rows depends only on the number of its columns; a product of one row is computed by another
                 kernel, which depends on the width modulo four.
Products         are added in parts. How many numbers are in a part depends on the number of columns, unless the
                 right side is constant; a product over at most 128 numbers is one part. A product of one row, or
                 of one column, depends on the number of steps modulo four. So does an RNN's product of one row.
Functions        are computed for several numbers at once, and the last few numbers of a tensor one by one, with
                 another rounding. Which these are depends on how many rows and steps the batch has.
Einsum           becomes the ReduceSum, the Transpose and the MatMul that it stands for, which are rewritten then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from onnx import NodeProto, numpy_helper

from lengthwise_export.onnx_graphs.protos import AXES_ARE_INPUTS, attributes_of
from lengthwise_export.steady_bits.replacement import LANES, MOST_LANES, PART, GraphFacts, MeasuredAxis, Replacement

_SHAPE_OF_ONE_AXIS: Final = 15  # the first opset in which Shape can return a single axis
_FEW: Final = 8  # A sum of fewer numbers over an axis before the last was in the same order in every batch


def rewritten_sum(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """A ReduceSum over the steps or over fixed axes, or a ReduceMean over fixed axes, as products with ones."""
    value, axes = node.input[0], facts.axes(node.input[0])
    reduced = None if axes is None else _reduced_axes(node, facts, len(axes))
    if axes is None or not reduced:
        return None
    open_axes = [axis for axis in reduced if not axes[axis].fixed]
    if len(open_axes) > 1 or (open_axes and node.op_type == "ReduceMean"):
        return None  # a mean over the width is of the padding too, whatever its bits
    if not open_axes and not facts.every and not _may_lose_bits(axes, reduced):
        return None
    new, rest = Replacement(node, facts), list(axes)
    for axis in sorted(reduced, reverse=True):
        others = [other for other in range(len(rest)) if other != axis]
        if axis in open_axes:
            value = _over_steps(new, value, rest, axis, facts.opset)
        else:  # a product with a constant column of ones
            ones = new.constant(np.ones((rest[axis].size, 1), dtype=np.float32))
            value = new.emit("MatMul", [new.transposed(value, [*others, axis]), ones])
            value = new.squeezed(value, [len(others)])
        del rest[axis]
    if node.op_type == "ReduceMean":
        count = math.prod(axes[axis].size for axis in reduced)
        value = new.emit("Div", [value, new.constant(np.array(count, dtype=np.float32))])
    if attributes_of(node).get("keepdims", 1):
        value = new.unsqueezed(value, sorted(reduced))
    return new.gives(value)


def _reduced_axes(node: NodeProto, facts: GraphFacts, rank: int) -> list[int] | None:
    """The axes that a reduction is over, not negative; None if they are not constant."""
    attributes = attributes_of(node)
    axes = attributes.get("axes", [])
    if len(node.input) > 1 and node.input[1]:
        axes = facts.constant(node.input[1])
    if axes is None or (len(axes) == 0 and attributes.get("noop_with_empty_axes", 0) == 1):
        return None
    return sorted({int(axis) % rank for axis in (axes if len(axes) else range(rank))})


def _may_lose_bits(axes: Sequence[MeasuredAxis], reduced: Sequence[int]) -> bool:
    """Whether a sum over these fixed axes was measured to add in another order for one row, at such sizes."""
    before = math.prod(axis.size for axis in axes[: reduced[0]])
    count = math.prod(axes[axis].size for axis in reduced)
    if reduced[-1] == len(axes) - 1:
        return before % LANES != 0 and count >= LANES
    return before == 1 and count >= _FEW


def _over_steps(new: Replacement, value: str, axes: Sequence[MeasuredAxis], axis: int, opset: int) -> str:
    """A sum over an axis of dynamic size, as `[2, steps] x [.., steps, columns]`, of which one row is kept."""
    behind = axes[axis + 1 :]
    if len(behind) > 1 and all(each.fixed for each in behind):
        # One axis of columns needs no transposition.
        merged = (*axes[: axis + 1], MeasuredAxis(math.prod(each.size for each in behind), fixed=True))
        flat = new.emit("Reshape", [value, new.constant([*[0] * (axis + 1), merged[-1].size])])
        total = _over_steps(new, flat, merged, axis, opset)
        return new.emit("Reshape", [total, new.constant([*[0] * axis, *(each.size for each in behind)])])
    if opset >= _SHAPE_OF_ONE_AXIS:
        size = new.emit("Shape", [value], start=axis, end=axis + 1)
    else:
        size = new.emit("Slice", [new.emit("Shape", [value]), new.constant([axis]), new.constant([axis + 1])])
    shape = new.emit("Concat", [new.constant([2]), size], axis=0)
    ones = new.emit("ConstantOfShape", [shape], value=numpy_helper.from_array(np.ones(1, np.float32)))
    others = [other for other in range(len(axes)) if other != axis]
    columns = max((other for other in others if axes[other].fixed), default=None)
    if columns is None:
        # The columns must not be the rows of the batch: how a product adds depends on their number.
        value = new.unsqueezed(value, [len(axes)])
        order = [*others, axis, len(axes)]
    else:
        order = [*(other for other in others if other != columns), axis, columns]
    product = new.emit("MatMul", [ones, new.transposed(value, order)])
    total = new.emit("Gather", [product, new.constant(np.array(0, dtype=np.int64))], axis=len(order) - 2)
    if columns is None:
        return new.squeezed(total, [len(others)])
    others = [other for other in order if other != axis]
    return new.transposed(total, [others.index(other) for other in others])


def rewritten_product(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """A MatMul, added in parts of `PART` numbers; or with its one row or column twice, and the result cut to one."""
    left, right = node.input
    first, second = facts.axes(left), facts.axes(right)
    if first is None or second is None or len(first) < 2 or len(second) < 2 or facts.is_constant(right):
        return None
    inner, rows, columns = first[-1], first[-2], second[-1]
    new = Replacement(node, facts)
    if inner.fixed and inner.size > PART and not columns.fixed:
        return new.gives(_in_parts(new, facts, (len(first), len(second)), inner.size))
    if not inner.fixed and (facts.every or inner.size % LANES):
        has_single = (rows.fixed and rows.size == 1, columns.fixed and columns.size == 1)
        if any(has_single):
            return new.gives(_of_two(new, left, right, has_single))
    if len(first) == len(second) == 2 and not rows.fixed and rows.size == 1:
        zero = new.constant([0])
        more = new.emit("Concat", [left, new.emit("Slice", [left, zero, new.constant([1]), zero])], axis=0)
        return new.gives(new.emit("Slice", [new.emit("MatMul", [more, right]), zero, new.constant([-1]), zero]))
    return None


def _in_parts(new: Replacement, facts: GraphFacts, ranks: tuple[int, int], inner: int) -> str:
    """The sum of products over at most `PART` numbers each."""
    left, right = new.replaced[0].input
    sizes = [PART] * (inner // PART) + ([inner % PART] if inner % PART else [])
    split = new.constant(sizes)
    lefts = new.emit_outputs("Split", [left, split], len(sizes), axis=ranks[0] - 1)
    before = facts.producers.get(right)
    perm = attributes_of(before).get("perm") if before is not None and before.op_type == "Transpose" else None
    if before is not None and perm:
        # Each part is transposed, and not the whole: onnxruntime computes such a product without a transposition.
        parts = new.emit_outputs("Split", [before.input[0], split], len(sizes), axis=perm[ranks[1] - 2])
        rights = [new.emit("Transpose", [part], perm=perm) for part in parts]
    else:
        rights = new.emit_outputs("Split", [right, split], len(sizes), axis=ranks[1] - 2)
    return new.total([new.emit("MatMul", pair) for pair in zip(lefts, rights, strict=True)])


def _of_two(new: Replacement, left: str, right: str, has_single: tuple[bool, bool]) -> str:
    """A product of one row or one column, computed with the row or the column twice and cut to one.

    `has_single`: whether the left factor has one row, and whether the right factor has one column.
    """
    if has_single[0]:
        left = new.emit("Concat", [left, left], axis=-2)
    if has_single[1]:
        right = new.emit("Concat", [right, right], axis=-1)
    product = new.emit("MatMul", [left, right])
    axes = [axis for axis, is_single in zip((-2, -1), has_single, strict=True) if is_single]
    starts, ends = new.constant([0] * len(axes)), new.constant([1] * len(axes))
    return new.emit("Slice", [product, starts, ends, new.constant(axes)])


_ROWS: Final = {0: 1, 4: 0, 5: 1}
"""The inputs of an RNN that have an axis of rows (X, sequence_lens, initial_h), and which axis that is."""
_ROWS_OF_OUTPUT: Final = (2, 1)  # the axis of rows of the outputs Y and Y_h


def rewritten_rnn(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """An RNN over one more row, a copy of the first, so that it never runs with one row only."""
    if attributes_of(node).get("layout", 0):
        return None
    new = Replacement(node, facts)
    zero, one, last = new.constant([0]), new.constant([1]), new.constant([-1])
    inputs = list(node.input)
    for index, axis in _ROWS.items():
        if any(inputs[index : index + 1]):
            first = new.emit("Slice", [inputs[index], zero, one, new.constant([axis])])
            inputs[index] = new.emit("Concat", [inputs[index], first], axis=axis)
    longer = new.copy(node, inputs, name_suffix="of_one_more_row")
    own_rows = [
        output and new.emit("Slice", [output, zero, last, new.constant([axis])])
        for output, axis in zip(longer, _ROWS_OF_OUTPUT, strict=False)
    ]
    return new.gives(*own_rows)


def rewritten_function(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Log, Softplus and Mish by ReduceLogSum; other functions of the tensor with ones after it, which are cut off."""
    (value,), axes = node.input, facts.axes(node.input[0])
    if axes is None or all(axis.fixed for axis in axes):
        return None
    if not facts.every and math.prod(axis.size for axis in axes) % LANES == 0:
        return None
    new = Replacement(node, facts)

    def log(value: str) -> str:
        """The logarithm of a sum of one number, which is computed number by number."""
        column, last = new.unsqueezed(value, [len(axes)]), [len(axes)]
        if facts.opset >= AXES_ARE_INPUTS:
            return new.emit("ReduceLogSum", [column, new.constant(last)], keepdims=0)
        return new.emit("ReduceLogSum", [column], axes=last, keepdims=0)

    if node.op_type == "Log":
        return new.gives(log(value))
    if node.op_type in ("Softplus", "Mish"):  # `max(x, 0) + log(1 + exp(-|x|))`, which cannot overflow
        smaller = new.emit("Exp", [new.emit("Neg", [new.emit("Abs", [value])])])
        one = new.constant(np.array(1, dtype=np.float32))
        softplus = new.emit("Add", [new.emit("Relu", [value]), log(new.emit("Add", [smaller, one]))])
        mish = node.op_type == "Mish"
        return new.gives(new.emit("Mul", [value, new.emit("Tanh", [softplus])]) if mish else softplus)
    # With so many ones behind them, no number of the tensor falls into the kernel's scalar tail.
    more = np.ones(MOST_LANES - 1, dtype=np.float32)
    flat = new.emit("Reshape", [value, new.constant([-1])])
    longer = new.emit(node.op_type, [new.emit("Concat", [flat, new.constant(more)], axis=0)])
    ends = (new.constant([0]), new.constant([-len(more)]))
    return new.gives(new.emit("Reshape", [new.emit("Slice", [longer, *ends]), new.emit("Shape", [value])]))


_MAX_OPERANDS: Final = 2


def expanded_einsum(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """An Einsum of one or two values as sums, transpositions and a product; not one with an ellipsis or a diagonal."""
    before, arrow, out = attributes_of(node)["equation"].replace(" ", "").partition("->")
    words, values = before.split(","), list(node.input)
    is_plain = all(word.isalpha() and len({*word}) == len(word) for word in (*words, out))
    if not arrow or not is_plain or len(words) > _MAX_OPERANDS or len(values) != len(words):
        return None
    sizes: dict[str, MeasuredAxis] = {}
    for word, value in zip(words, values, strict=True):
        axes = facts.axes(value)
        if axes is None or len(axes) != len(word):
            return None
        sizes |= dict(zip(word, axes, strict=True))
    if len(words) == _MAX_OPERANDS and facts.is_constant(values[0]):
        words, values = words[::-1], values[::-1]
    new = Replacement(node, facts)
    is_summed = [bool(_alone(words, index, out)) for index in range(len(words))]
    for index, word in enumerate(words):
        if over := _alone(words, index, out):
            values[index] = new.emit("ReduceSum", [values[index], new.constant([*map(word.index, over)])], keepdims=0)
            words[index] = "".join(letter for letter in word if letter not in over)
    if len(words) == 1:
        return new.gives(_in_order(new, values[0], words[0], out)) if facts.every or is_summed[0] else None
    first, second = words
    batch = "".join(letter for letter in out if letter in first and letter in second)
    inner = "".join(letter for letter in first if letter in second and letter not in out)
    left, right = ("".join(letter for letter in out if letter not in other) for other in (second, first))
    is_one_product = len(left) <= 1 or (facts.is_constant(values[1]) and not batch)
    if not {*out} <= {*first, *second} or len(inner) > 1 or len(right) > 1 or not is_one_product:
        return None
    if not facts.every and not any(is_summed) and not _may_lose_bits_in_product(sizes, batch, inner, left, right):
        return None
    return new.gives(_product(new, values, words, out, (batch, inner, left, right)))


def _alone(words: Sequence[str], index: int, out: str) -> str:
    """The letters of one value that neither the other value nor the result has."""
    others = {letter for other, word in enumerate(words) if other != index for letter in word}
    return "".join(letter for letter in words[index] if letter not in others and letter not in out)


def _in_order(new: Replacement, value: str, word: str, out: str) -> str:
    """A value with its axes in the order of the letters of `out`."""
    return new.transposed(value, [word.index(letter) for letter in out])


def _may_lose_bits_in_product(sizes: Mapping[str, MeasuredAxis], batch: str, inner: str, left: str, right: str) -> bool:
    """Whether a product of these sizes may depend on the batch."""
    if not inner:
        return False
    if not sizes[inner].fixed:
        return sizes[inner].size % LANES != 0 and not (left and right)
    if any(not sizes[letter].fixed for letter in right):
        return sizes[inner].size > PART
    return not batch and math.prod(sizes[letter].size for letter in left) == 1


def _product(
    new: Replacement, values: Sequence[str], words: Sequence[str], out: str, parts: tuple[str, str, str, str]
) -> str:
    """A MatMul of two values by their letters: of both and the result, summed over, of the first, and of the second."""
    batch, inner, left, right = parts
    factors = []
    for value, word, letters in zip(values, words, ((left, inner), (inner, right)), strict=True):
        factor = _in_order(new, value, word, batch + "".join(letters))
        missing = [axis for axis, letter in zip((-2, -1), letters, strict=True) if not letter]
        factors.append(new.unsqueezed(factor, missing) if missing else factor)
    product = new.emit("MatMul", [*factors])
    if added := [axis for axis, letters in ((-2, left), (-1, right)) if not letters]:
        product = new.squeezed(product, added)
    return _in_order(new, product, batch + left + right, out)
