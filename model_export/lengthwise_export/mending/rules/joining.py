"""Rules for operators that join, cut and pad: what follows the steps has to follow each row's last step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise_export.mending.engine import along, rule, values
from lengthwise_export.mending.mender import Mender
from lengthwise_export.mending.rules.convolution import surrounded
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    INT64,
    DataTensor,
    Size,
    Table,
    Value,
    constant_of,
)


@rule("Concat", takes=values)
def _concat(mender: Mender, inputs: list[Value]) -> DataTensor:
    """Mends the join of tensors along an axis.

    1. One of them is an index of rows: nothing is joined; the parts are kept as the columns of an index, for GatherND.
    2. Nothing follows an axis of time: the node stays, on operands that are repeated to their common shape before.
    3. Something follows the steps (a token at the end, two sequences in turn): it would come after the padding, so each
       row picks its own positions of the joined tensor.
    4. Joined along the rows: refused.
    """
    # Case 1
    if any(isinstance(value, DataTensor) and value.is_row_index for value in inputs):
        return DataTensor("", INT64, (), index_columns=tuple(inputs))
    # Case 2
    axis = mender.attribute("axis") % inputs[0].rank
    operands, result = mender.align_axes(inputs, keep=axis)
    parts = [operand.groups[axis] for operand in operands]
    mender.refuse_if(any(len(part) != 1 for part in parts), "joins merged axes")
    mender.refuse_rows(*parts)
    sizes = [part[0] for part in parts]
    joined_size = Size(np.sum([size.table for size in sizes], axis=0))
    expanded = [mender.expanded(operand, result, axis) for operand in operands]
    name = mender.emit("Concat", expanded, axis=result.first_dims()[axis])
    follows_steps = any(size.is_time for size in sizes[:-1])
    zero_padded = all(operand.zero_padded for operand in operands) and not follows_steps and not joined_size.is_time
    joined = result.with_name(name, groups=result.groups_with(axis, joined_size), zero_padded=zero_padded)
    if not follows_steps:
        return joined
    # Case 3: in the joined tensor, the padding of each part stands between its own end and the next part. So a position
    # of a lone sequence is found there by adding the padding of all parts that end before it.
    index = positions = mender.writer.unsqueezed(mender.writer.positions(joined_size), [0])
    end = np.zeros(len(mender.lengths), np.int64)  # `[lengths]`: where a part ends in a lone sequence
    for size in sizes[:-1]:
        end = end + size.by_length
        if size.is_time:
            padding = mender.emit("Sub", [mender.writer.size_at_width(size), mender.writer.per_row(size.by_length)])
            is_behind = mender.emit("GreaterOrEqual", [positions, mender.writer.per_row_column(end)])
            factors = [mender.writer.cast(is_behind, INT64), mender.writer.unsqueezed(padding, [1])]
            index = mender.emit("Add", [index, mender.emit("Mul", factors)])
    joined = joined.because("what follows the steps comes behind the padding")
    return mender.take_per_row(joined, axis, index, joined_size)


@rule("Split", takes=along(0))
def _split(mender: Mender, value: DataTensor, axis: int) -> list[DataTensor]:
    """Mends a split of an axis of fixed size: the node stays. A split of the steps or of the rows is refused."""
    dim, size = mender.only_dim(value, axis)
    array, count = mender.constant_input(1), len(mender.node.output)
    if size.fixed is None:
        mender.refuse(CROSSES_ROWS if size.is_rows else "cuts the steps into pieces whose sizes depend on the width")
    equal_size = -(-size.fixed // count)  # of a Split without sizes; the last part may be smaller
    equal_sizes = [min(equal_size, size.fixed - equal_size * index) for index in range(count)]
    part_sizes = equal_sizes if array is None else array.tolist()
    names = mender.copy_node([value.name, *mender.further_inputs()], axis=dim)
    return [
        value.with_name(name, groups=value.groups_with(axis, mender.fixed_size(part_size)))
        for name, part_size in zip(names, part_sizes, strict=True)
    ]


@rule("Pad")
def _pad(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a Pad, which adds elements around the axes: each axis in turn, by `_padded_axis`."""
    amounts, mode = mender.sizes_input(1, "its amounts are"), mender.attribute("mode", "constant")
    number, axes = mender.constant_input(2), mender.constant_input(3)
    fill = number.reshape(-1)[0].item() if number is not None and number.size else 0.0
    padded_axes = [*range(value.rank)] if axes is None else [int(axis) % value.rank for axis in axes]
    for index, axis in enumerate(padded_axes):
        before, after = amounts.table[..., index], amounts.table[..., index + len(padded_axes)]
        if before.any() or after.any():
            value = _padded_axis(mender, value, axis, (before, after), mode, fill)
    return value


def _padded_axis(
    mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], mode: str, fill: float
) -> DataTensor:
    """The tensor with elements added around an axis.

    1. Their number is the same at every length, and the mode is constant or the axis of fixed size: the node stays. If
       a number is added after the steps, it is also put at the padding, so that it follows each row's own steps.
    2. Their number depends on the length (to fill up to a multiple of a number), and the mode is constant:
       `surrounded`.
    3. The mode is edge, reflect or wrap, and the axis of time: `_repeated`, which adds the row's own steps again.

    Args:
        mender: The mender.
        value: The tensor.
        axis: The axis of the original; refused in the cases 2 and 3 if it is not of time.
        amounts: How many elements are added in front, and after: `[2, lengths]` each. In case 1, negative ones take
            some away; in the others they are refused.
        mode: The mode of the Pad.
        fill: The number that is added in the mode constant.
    """
    _, size = mender.mixed_dim(value, axis)
    before, after = (constant_of(np.ascontiguousarray(table)) for table in amounts)
    # Case 1
    if before is not None and after is not None and (mode == "constant" or size.fixed is not None):
        # The original cannot take away more steps than there are
        mender.require_lengths(size.by_length >= -before - after)
        if after > 0:
            value = mender.fill_padding(value, axis, fill, "what it adds comes behind the padding")
        number = fill if mode == "constant" else None
        padded = mender.padded(value, {axis: (int(before), int(after))}, fill=number, mode=mode)
        return replace(padded, zero_padded=value.zero_padded and number == 0 and bool(after >= 0))
    is_same_for_all_rows = all((table[0] == table[1]).all() and (table >= 0).all() for table in amounts)
    mender.refuse_if(
        not size.is_time or not is_same_for_all_rows,
        f"pads in the mode {mode} by an amount that depends on the width, or takes steps away",
    )
    by_length = amounts[0][0], amounts[1][0]
    if mode != "constant":  # case 3
        return _repeated(mender, value, axis, by_length, mode)
    # Case 2
    cause = "what it adds depends on the padded width, and comes behind the padding"
    return surrounded(mender, value, axis, by_length, fill, cause)


def _repeated(mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], mode: str) -> DataTensor:
    """Adds each row's own steps again, in front of them and after them, as a Pad in another mode than constant does.

    Args:
        mender: The mender.
        value: The tensor.
        axis: The axis of the original, of time.
        amounts: How many elements are added in front, and after: `[lengths]` each, 0 or more.
        mode: The mode of the Pad: `edge`, `reflect` or `wrap`; refused if it is another.
    """
    size = mender.only_dim(value, axis)[1]
    new_size = Size(size.table + sum(amounts))
    value = value.because(f"in the mode {mode} it repeats the end of the padded width, not of the row")
    mender.require_lengths(
        size.by_length > (np.maximum(*amounts) if mode == "reflect" else 0)
    )  # there are steps to repeat: in the mode reflect more than are added on a side, in the others one
    # `index` is the position of each new element, counted from the row's first step; negative in front of it. The mode
    # says which of the row's own steps stands there.
    index = mender.strided_positions(-amounts[0], 1, new_size)
    own_size = mender.writer.per_row_column(size.by_length)
    last = mender.emit("Sub", [own_size, mender.writer.constant([1])])
    if mode == "edge":  # the last step after the steps; in front, `take_per_row` takes the first one
        index = mender.emit("Min", [index, last])
    elif mode == "reflect":  # mirrored at the first and at the last step: last - |last - |index||
        index = mender.emit("Abs", [index])
        distance = mender.emit("Abs", [mender.emit("Sub", [last, index])])
        index = mender.emit("Sub", [last, distance])
    elif mode == "wrap":  # the steps again from the first one
        index = mender.emit("Mod", [index, own_size])
    else:
        mender.refuse(f"pads in the mode {mode}")
    return mender.take_per_row(value, axis, index, new_size)
