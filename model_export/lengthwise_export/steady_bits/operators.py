"""Rewrites of sums, products and functions, so that no number's rounding depends on the batch; see also `convolutions`.

Sums and means   onnxruntime's ReduceSum and ReduceMean add in another order at another width, and for one row of
                 a few features. A product with ones adds the same numbers. The order of a product of two or more
                 rows depends only on the number of its columns; a product of one row is computed by another
                 kernel, which depends on the width modulo four.
Products         are added in parts. How many numbers are in a part depends on the number of columns, unless the
                 right side is constant; a product over at most 128 numbers (`PART`) is one part. A product of one
                 row, or of one column, depends on the number of steps modulo four. So does an RNN's product of one
                 row.
Functions        are computed for several numbers at once, and the last few numbers of a tensor one by one, with
                 another rounding. Which numbers are the last depends on how many rows and steps the batch has.
Einsum           becomes the ReduceSum, the Transpose and the MatMul that it stands for, which are rewritten then.

A value is its name in the graph. Its axes are *fixed* if they have the same size in every batch, else *dynamic*
(`MeasuredAxis`); a measured size is that in the smallest batch, of one row. A rewrite returns the nodes that replace a
node; None if the bits of the node do not depend on the batch, or if no way to rewrite it is known. With
`facts.at_all_sizes`, a node is rewritten also at those at which its operator was not seen to lose bits.
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
_FEW: Final = 8  # numbers: a shorter sum over an axis before the last one was added in the same order in every batch


def rewritten_sum(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites a ReduceSum over the steps or fixed axes, or a ReduceMean over fixed axes, as products with ones.

    None for a mean over the steps, a sum over two dynamic axes, or a node whose bits do not depend on the batch.
    """
    value, axes = node.input[0], facts.axes(node.input[0])
    reduced = None if axes is None else _reduced_axes(node, facts, len(axes))
    if axes is None or not reduced:
        return None
    dynamic_axes = [axis for axis in reduced if not axes[axis].fixed]
    if len(dynamic_axes) > 1 or (dynamic_axes and node.op_type == "ReduceMean"):
        return None  # a mean over the width is of the padding too, whatever its bits
    if not dynamic_axes and not facts.at_all_sizes and not _may_lose_bits(axes, reduced):
        return None
    # The axes one by one, from the last, so that the others keep their indices.
    new, remaining_axes = Replacement(node, facts), list(axes)
    for axis in sorted(reduced, reverse=True):
        other_axes = [index for index in range(len(remaining_axes)) if index != axis]
        if axis in dynamic_axes:
            value = _sum_over_steps(new, value, remaining_axes, axis, facts.opset)
        else:  # a product with a constant column of ones
            ones = new.constant(np.ones((remaining_axes[axis].size, 1), dtype=np.float32))
            value = new.emit("MatMul", [new.transposed(value, [*other_axes, axis]), ones])
            value = new.squeezed(value, [len(other_axes)])
        del remaining_axes[axis]
    if node.op_type == "ReduceMean":
        count = math.prod(axes[axis].size for axis in reduced)
        value = new.emit("Div", [value, new.constant(np.array(count, dtype=np.float32))])
    if attributes_of(node).get("keepdims", 1):
        value = new.unsqueezed(value, sorted(reduced))
    return new.with_outputs(value)


def _reduced_axes(node: NodeProto, facts: GraphFacts, rank: int) -> list[int] | None:
    """The axes that a reduction is over, ascending and not negative; None if they are not constant, or there are none.

    `rank` is the number of axes of its input.
    """
    attributes = attributes_of(node)
    has_input = len(node.input) > 1 and node.input[1]
    axes = facts.constant(node.input[1]) if has_input else attributes.get("axes", [])
    if axes is None or (len(axes) == 0 and attributes.get("noop_with_empty_axes", 0) == 1):
        return None
    return sorted({int(axis) % rank for axis in (axes if len(axes) else range(rank))})


def _may_lose_bits(axes: Sequence[MeasuredAxis], reduced: Sequence[int]) -> bool:
    """Whether a sum over fixed axes may be added in another order for one row than for several.

    The conditions are those at which this was measured.

    Args:
        axes: All axes of the input.
        reduced: The indices of those that are summed over, ascending.
    """
    before = math.prod(axis.size for axis in axes[: reduced[0]])
    count = math.prod(axes[axis].size for axis in reduced)
    if reduced[-1] == len(axes) - 1:
        return before % LANES != 0 and count >= LANES
    return before == 1 and count >= _FEW


def _sum_over_steps(new: Replacement, value: str, axes: Sequence[MeasuredAxis], axis: int, opset: int) -> str:
    """Writes a sum over a dynamic axis as a product with ones, `[2, steps] x [.., steps, columns]`.

    The ones have two rows, because another kernel computes a product of one row; one row of the result is kept. The
    columns are a fixed axis of the value, or several that are merged for that; else a new axis of size one.

    Args:
        new: Gets the nodes.
        value: The value to sum.
        axes: Its axes.
        axis: The index of the axis that is summed over.
        opset: The version of ONNX's operators.

    Returns:
        The sum, without that axis.
    """
    further_axes = axes[axis + 1 :]
    if len(further_axes) > 1 and all(measured.fixed for measured in further_axes):
        # They are merged to one axis of columns, which needs no transposition, and split again in the sum.
        sizes = [measured.size for measured in further_axes]
        merged = (*axes[: axis + 1], MeasuredAxis(math.prod(sizes), fixed=True))
        flat = new.emit("Reshape", [value, new.constant([*[0] * (axis + 1), merged[-1].size])])
        total = _sum_over_steps(new, flat, merged, axis, opset)
        return new.emit("Reshape", [total, new.constant([*[0] * axis, *sizes])])
    # The ones
    if opset >= _SHAPE_OF_ONE_AXIS:
        size = new.emit("Shape", [value], start=axis, end=axis + 1)
    else:
        size = new.emit("Slice", [new.emit("Shape", [value]), new.constant([axis]), new.constant([axis + 1])])
    shape = new.emit("Concat", [new.constant([2]), size], axis=0)
    ones = new.emit("ConstantOfShape", [shape], value=numpy_helper.from_array(np.ones(1, np.float32)))
    # The last two axes of the right factor: the steps and the columns. These must not be the rows of the batch, because
    # how a product adds depends on the number of columns.
    other_axes = [index for index in range(len(axes)) if index != axis]
    columns = max((index for index in other_axes if axes[index].fixed), default=None)
    if columns is None:
        value = new.unsqueezed(value, [len(axes)])
        order = [*other_axes, axis, len(axes)]
    else:
        order = [*(index for index in other_axes if index != columns), axis, columns]
    product = new.emit("MatMul", [ones, new.transposed(value, order)])
    # One of the two rows; then the axes that are left in their old order
    total = new.emit("Gather", [product, new.constant(np.array(0, dtype=np.int64))], axis=len(order) - 2)
    if columns is None:
        return new.squeezed(total, [len(other_axes)])
    order.remove(axis)
    return new.transposed(total, [order.index(index) for index in other_axes])


def rewritten_product(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites a MatMul in one of three forms, by what its bits depend on.

    1. The number of columns, if it adds more than `PART` numbers: the sum of products over `PART` numbers each.
    2. The number of steps modulo four, if it sums over the steps and has one row or one column in every batch: that
       row or column is computed twice, and cut to one.
    3. The number of rows, if each is a row of the batch: the left factor gets one more row, a copy of the first.
    """
    left, right = node.input
    left_axes, right_axes = facts.axes(left), facts.axes(right)
    if left_axes is None or right_axes is None or len(left_axes) < 2 or len(right_axes) < 2 or right in facts.constants:
        return None
    inner, rows, columns = left_axes[-1], left_axes[-2], right_axes[-1]
    new = Replacement(node, facts)
    # Form 1
    if inner.fixed and inner.size > PART and not columns.fixed:
        return new.with_outputs(_sum_of_products(new, facts, (len(left_axes), len(right_axes)), inner.size))
    # Form 2
    if not inner.fixed and (facts.at_all_sizes or inner.size % LANES):
        has_one = (rows.fixed and rows.size == 1, columns.fixed and columns.size == 1)
        if any(has_one):
            return new.with_outputs(_product_of_two(new, left, right, has_one))
    # Form 3
    if len(left_axes) == len(right_axes) == 2 and not rows.fixed and rows.size == 1:
        zero = new.constant([0])
        longer = new.emit("Concat", [left, new.emit("Slice", [left, zero, new.constant([1]), zero])], axis=0)
        product = new.emit("MatMul", [longer, right])
        return new.with_outputs(new.emit("Slice", [product, zero, new.constant([-1]), zero]))
    return None


def _sum_of_products(new: Replacement, facts: GraphFacts, ranks: tuple[int, int], inner: int) -> str:
    """Writes the replaced MatMul as a sum of products over at most `PART` numbers each.

    Args:
        new: Gets the nodes.
        facts: What is known of the graph.
        ranks: The numbers of axes of the left and the right factor.
        inner: How many numbers the product adds.

    Returns:
        The sum.
    """
    left, right = new.replaced[0].input
    sizes = [PART] * (inner // PART) + ([inner % PART] if inner % PART else [])
    split = new.constant(sizes)
    lefts = new.emit_outputs("Split", [left, split], len(sizes), axis=ranks[0] - 1)
    producer = facts.producers.get(right, NodeProto())
    perm = attributes_of(producer).get("perm") if producer.op_type == "Transpose" else None
    if perm:
        # Each part is transposed, and not the whole: onnxruntime computes such a product without a transposition.
        parts = new.emit_outputs("Split", [producer.input[0], split], len(sizes), axis=perm[ranks[1] - 2])
        rights = [new.emit("Transpose", [part], perm=perm) for part in parts]
    else:
        rights = new.emit_outputs("Split", [right, split], len(sizes), axis=ranks[1] - 2)
    return new.total([new.emit("MatMul", pair) for pair in zip(lefts, rights, strict=True)])


def _product_of_two(new: Replacement, left: str, right: str, has_one: tuple[bool, bool]) -> str:
    """Writes a product of one row or one column: with that row or column twice, and the result cut to one.

    Args:
        new: Gets the nodes.
        left: The left factor.
        right: The right factor.
        has_one: Whether the left factor has one row, and whether the right factor has one column.

    Returns:
        The product.
    """
    if has_one[0]:
        left = new.emit("Concat", [left, left], axis=-2)
    if has_one[1]:
        right = new.emit("Concat", [right, right], axis=-1)
    product = new.emit("MatMul", [left, right])
    axes = [axis for axis, is_one in zip((-2, -1), has_one, strict=True) if is_one]
    starts, ends = new.constant([0] * len(axes)), new.constant([1] * len(axes))
    return new.emit("Slice", [product, starts, ends, new.constant(axes)])


_ROWS_OF_INPUTS: Final = {0: 1, 4: 0, 5: 1}
"""By the index of an RNN's input that has an axis of rows (X, sequence_lens, initial_h): the index of that axis."""
_ROWS_OF_OUTPUTS: Final = (2, 1)  # the axis of rows of the outputs Y and Y_h


def rewritten_rnn(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites an RNN to run over one more row, a copy of the first, so that it never runs with one row only.

    The outputs are cut to the rows of the batch again.
    """
    if attributes_of(node).get("layout", 0):
        return None
    new = Replacement(node, facts)
    zero, one, last = new.constant([0]), new.constant([1]), new.constant([-1])
    inputs = list(node.input)
    for index, axis in _ROWS_OF_INPUTS.items():
        if any(inputs[index : index + 1]):  # the node has this input, and it is not left out
            first = new.emit("Slice", [inputs[index], zero, one, new.constant([axis])])
            inputs[index] = new.emit("Concat", [inputs[index], first], axis=axis)
    outputs = new.copy(node, inputs, name_suffix="of_one_more_row")
    cut = [
        new.emit("Slice", [output, zero, last, new.constant([axis])]) if output else ""
        for output, axis in zip(outputs, _ROWS_OF_OUTPUTS, strict=False)
    ]
    return new.with_outputs(*cut)


def rewritten_function(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites an elementwise function in a form that computes every number of a tensor in the same way.

    onnxruntime's kernels compute several numbers at once, and the last few of a tensor, which are left over, by other
    code with other bits. So Log becomes a ReduceLogSum of one number, and Softplus and Mish are written with Log. Any
    other function runs on the tensor with ones after it, which are cut off again: then only ones are left over.
    """
    (value,), axes = node.input, facts.axes(node.input[0])
    if axes is None or all(axis.fixed for axis in axes):
        return None
    if not facts.at_all_sizes and math.prod(axis.size for axis in axes) % LANES == 0:  # no numbers are left over
        return None
    new = Replacement(node, facts)

    def log(number: str) -> str:
        """The logarithm of each number, as that of a sum of this number alone, which is computed number by number."""
        column, last = new.unsqueezed(number, [len(axes)]), [len(axes)]
        if facts.opset >= AXES_ARE_INPUTS:
            return new.emit("ReduceLogSum", [column, new.constant(last)], keepdims=0)
        return new.emit("ReduceLogSum", [column], axes=last, keepdims=0)

    if node.op_type == "Log":
        return new.with_outputs(log(value))
    if node.op_type in ("Softplus", "Mish"):  # `max(x, 0) + log(1 + exp(-|x|))`, which cannot overflow
        smaller = new.emit("Exp", [new.emit("Neg", [new.emit("Abs", [value])])])
        one = new.constant(np.array(1, dtype=np.float32))
        softplus = new.emit("Add", [new.emit("Relu", [value]), log(new.emit("Add", [smaller, one]))])
        is_mish = node.op_type == "Mish"
        return new.with_outputs(new.emit("Mul", [value, new.emit("Tanh", [softplus])]) if is_mish else softplus)
    # With so many ones after them, no number of the tensor is among those that the kernel computes one by one.
    ones = np.ones(MOST_LANES - 1, dtype=np.float32)
    flat = new.emit("Reshape", [value, new.constant([-1])])
    longer = new.emit(node.op_type, [new.emit("Concat", [flat, new.constant(ones)], axis=0)], **attributes_of(node))
    cut = new.emit("Slice", [longer, new.constant([0]), new.constant([-len(ones)])])
    return new.with_outputs(new.emit("Reshape", [cut, new.emit("Shape", [value])]))


_MAX_OPERANDS: Final = 2


def expanded_einsum(node: NodeProto, facts: GraphFacts) -> Replacement | None:
    """Rewrites an Einsum of one or two values as sums, transpositions and a MatMul, which have rewrites themselves.

    Returns:
        The replacement. None for an Einsum with an ellipsis, with a letter twice in one value (a diagonal), or that is
        more than one product; and, without `facts.at_all_sizes`, for one whose bits do not depend on the batch.
    """
    # 1. The equation: a term of letters for each value, one letter for each axis
    inputs, arrow, result = attributes_of(node)["equation"].replace(" ", "").partition("->")
    terms, values = inputs.split(","), list(node.input)
    is_plain = all(term.isalpha() and len({*term}) == len(term) for term in (*terms, result))
    if not arrow or not is_plain or len(terms) > _MAX_OPERANDS or len(values) != len(terms):
        return None
    sizes: dict[str, MeasuredAxis] = {}
    for term, value in zip(terms, values, strict=True):
        axes = facts.axes(value)
        if axes is None or len(axes) != len(term):
            return None
        sizes |= dict(zip(term, axes, strict=True))
    if len(terms) == _MAX_OPERANDS and values[0] in facts.constants:  # a constant goes to the right
        terms, values = terms[::-1], values[::-1]
    # 2. Letters that stand once are summed first; for an Einsum of one value, only a transposition is left then.
    new = Replacement(node, facts)
    for index, term in enumerate(terms):
        if summed := [letter for letter in term if inputs.count(letter) == 1 and letter not in result]:
            values[index] = new.emit("ReduceSum", [values[index], new.constant([*map(term.index, summed)])], keepdims=0)
            terms[index] = "".join(letter for letter in term if letter not in summed)
    has_sums = bool(new.nodes)
    if len(terms) == 1:
        return new.with_outputs(_in_order(new, values[0], terms[0], result)) if facts.at_all_sizes or has_sums else None
    # 3. The other letters by their role in a product: of both values and the result, summed over, of one value only
    first, second = terms
    batch = "".join(letter for letter in result if letter in first and letter in second)
    inner = "".join(letter for letter in first if letter in second and letter not in result)
    left = "".join(letter for letter in result if letter not in second)
    right = "".join(letter for letter in result if letter not in first)
    # The left factor of a MatMul has one axis of rows, or more where the right one is a single matrix.
    is_one_product = len(left) <= 1 or (values[1] in facts.constants and not batch)
    if not {*result} <= {*first, *second} or len(inner) > 1 or len(right) > 1 or not is_one_product:
        return None
    if not facts.at_all_sizes and not has_sums and not _may_lose_bits_in_product(sizes, batch, inner, left, right):
        return None
    return new.with_outputs(_product(new, values, terms, result, (batch, inner, left, right)))


def _in_order(new: Replacement, value: str, term: str, result: str) -> str:
    """The value, whose axes are the letters of `term`, transposed to the order of the letters of `result`."""
    return new.transposed(value, [term.index(letter) for letter in result])


def _may_lose_bits_in_product(sizes: Mapping[str, MeasuredAxis], batch: str, inner: str, left: str, right: str) -> bool:
    """Whether the bits of a product may depend on the batch; the conditions are those of `rewritten_product`.

    Args:
        sizes: The size of each letter's axis.
        batch: The letters that both factors and the result have.
        inner: The letter that is summed over; empty for none.
        left: The letters of the first factor only.
        right: The letter of the second factor only; empty for none.
    """
    if not inner:
        return False
    if not sizes[inner].fixed:  # form 2: without a letter there is one row or one column
        return sizes[inner].size % LANES != 0 and not (left and right)
    if any(not sizes[letter].fixed for letter in right):  # form 1
        return sizes[inner].size > PART
    return not batch and math.prod(sizes[letter].size for letter in left) == 1  # form 3


def _product(
    new: Replacement, values: Sequence[str], terms: Sequence[str], result: str, roles: tuple[str, str, str, str]
) -> str:
    """Writes a MatMul of two values by their letters.

    Args:
        new: Gets the nodes.
        values: The two factors.
        terms: The letters of their axes.
        result: The letters of the result.
        roles: The letters of both factors and the result; the letter that is summed over; those of the first factor
            only; and that of the second only. The second and the fourth may be empty.

    Returns:
        The product, with its axes in the order of `result`.
    """
    batch, inner, left, right = roles
    factors = []
    for value, term, letters in zip(values, terms, ((left, inner), (inner, right)), strict=True):
        factor = _in_order(new, value, term, batch + "".join(letters))
        missing = [axis for axis, letter in zip((-2, -1), letters, strict=True) if not letter]
        factors.append(new.unsqueezed(factor, missing) if missing else factor)
    product = new.emit("MatMul", [*factors])
    if added := [axis for axis, letters in ((-2, left), (-1, right)) if not letters]:
        product = new.squeezed(product, added)
    return _in_order(new, product, batch + left + right, result)
