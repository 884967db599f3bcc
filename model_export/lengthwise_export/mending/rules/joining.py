"""Operators that join, cut and pad along an axis: what follows the steps follows each row's own last step."""

from __future__ import annotations

import numpy as np

from lengthwise_export.mending.mender import INT64, Mender, rule
from lengthwise_export.mending.rules.convolution import surrounded
from lengthwise_export.mending.values import CROSSES_ROWS, DataTensor, KnownTensor, Size, Table, constant_of


@rule("Concat")
def _concat(mender: Mender) -> None:
    """Tensors joined along an axis.

    1. Nothing stands behind an axis of time: the node stays, on operands that have all rows.
    2. Something stands behind the steps (a token at the end, two sequences in turn): it would come behind the
       padding, so each row picks its own positions of the joined tensor.
    3. The numbers of the rows and another index: kept apart, for GatherND.
    4. Joined along the rows: refused.
    """
    values = [mender.values[name] for name in mender.node.input if name]
    if any(isinstance(value, DataTensor) and value.is_row_index for value in values):
        mender.set_output(
            DataTensor("", INT64, (), index_columns=tuple(values))
        )  # the index of several axes: for GatherND
        return
    rank = max(len(value.shape) if isinstance(value, KnownTensor) else value.rank for value in values)
    axis = mender.attribute("axis") % rank
    operands, groups, has_added_rows = mender.align_axes(values, keep=axis)
    parts = [operand.groups[axis + operand.rank - rank] for operand in operands]
    mender.refuse_if(any(len(part) != 1 for part in parts), "joins merged axes")
    mender.refuse_rows(*parts)
    sizes = [part[0] for part in parts]
    out = Size(np.sum([size.table for size in sizes], axis=0))
    dim = int(has_added_rows) + sum(len(group) for group in groups[:axis])
    name = mender.emit("Concat", [mender.expanded(each, groups, has_added_rows, axis) for each in operands], axis=dim)
    whole, is_behind = (*groups[:axis], (out,), *groups[axis + 1 :]), any(size.is_time for size in sizes[:-1])
    zero_padded = all(operand.zero_padded for operand in operands) and not is_behind and not out.is_time
    joined = DataTensor(name, operands[0].dtype, whole, has_added_rows, zero_padded)
    if not is_behind:
        mender.set_output(joined)
        return
    mender.causes.append("what follows the steps comes behind the padding")
    index = base = mender.writer.unsqueezed(mender.writer.positions(out), [0])
    end = np.zeros(mender.length_count, np.int64)
    for size in sizes[:-1]:
        end = end + size.by_length
        if size.is_time:
            own = mender.writer.per_row_column(end)
            padding = mender.emit("Sub", [mender.writer.size_at_width(size), mender.writer.per_row(size.by_length)])
            behind = mender.emit("GreaterOrEqual", [base, own])
            moved = mender.emit(
                "Mul", [mender.emit("Cast", [behind], to=INT64), mender.writer.unsqueezed(padding, [1])]
            )
            index = mender.emit("Add", [index, moved])
    mender.set_output(mender.take_per_row(joined, axis, index, out))


@rule("Split")
def _split(mender: Mender) -> None:
    """Parts of an axis of fixed size: the node stays. Parts of the steps or of the rows are refused."""
    value, axis = mender.input_and_axis(0)
    dim, size = mender.only_dim(value, axis)
    array, count = mender.constant_input(1), len(mender.node.output)
    if size.fixed is None:
        mender.refuse(CROSSES_ROWS if size.is_rows else "cuts the steps into pieces whose sizes depend on the width")
    each = -(-size.fixed // count)
    part_sizes = [min(each, size.fixed - each * at) for at in range(count)] if array is None else array.tolist()
    copied = mender.copy_node([value.name, *mender.further_inputs()], axis=dim)
    for at, (name, part) in enumerate(zip(copied, part_sizes, strict=True)):
        if name:
            mender.set_output(value.with_name(name, groups=value.groups_with(axis, mender.fixed_size(part))), at)


@rule("Pad")
def _pad(mender: Mender) -> None:
    """More elements around the axes; each axis in turn.

    1. As many at every length: `_padded`.
    2. As many as the length says (up to a multiple of a number): `_padded_by_length`.
    """
    value, mode = mender.data_input(0), mender.attribute("mode", "constant")
    amounts, number, axes = mender.sizes_input(1, "its amounts are"), mender.constant_input(2), mender.constant_input(3)
    fill = number.reshape(-1)[0].item() if number is not None and number.size else 0.0
    chosen = [*range(value.rank)] if axes is None else [int(axis) % value.rank for axis in axes]
    count = len(chosen)
    for at, axis in enumerate(chosen):
        front, behind = amounts.table[..., at], amounts.table[..., at + count]
        before, after = (constant_of(np.ascontiguousarray(each)) for each in (front, behind))
        if before is None or after is None:
            value = _padded_by_length(mender, value, axis, (front, behind), mode, fill)
        elif before or after:
            value = _padded(mender, value, axis, int(before), int(after), mode, fill)
    mender.set_output(value)


def _padded_by_length(
    mender: Mender, value: DataTensor, axis: int, amounts: tuple[Table, Table], mode: str, fill: float
) -> DataTensor:
    """The tensor with a number around each row's own steps, as often as its length says."""
    is_safe = all((each[0] == each[1]).all() and (each >= 0).all() for each in amounts)
    mender.refuse_if(
        mode != "constant" or not mender.only_dim(value, axis)[1].is_time or not is_safe,
        f"pads in the mode {mode} by an amount that depends on the width, or takes steps away",
    )
    cause = "what it adds depends on the padded width, and comes behind the padding"
    return surrounded(mender, value, axis, (amounts[0][0], amounts[1][0]), fill, cause)


def _padded(
    mender: Mender, value: DataTensor, axis: int, before: int, after: int, mode: str, fill: float
) -> DataTensor:
    """The tensor with `before` and `after` elements around an axis of the original.

    1. A number in front: the node stays. Behind: the number also goes beyond each row's length, where a lone sequence
       has it.
    2. Along an axis of fixed size, in any mode: the node stays.
    3. The steps again, in the modes edge, reflect and wrap: each row picks its own positions.
    """
    dim, size = mender.mixed_dim(value, axis)
    mender.require_lengths(size.by_length >= -before - after)  # no original takes away more steps than there are
    out = Size(np.maximum(size.table + before + after, 0))
    if mode == "constant" or size.fixed is not None:
        if after > 0:
            value = mender.fill_padding(value, axis, fill, "what it adds comes behind the padding")
            dim = value.first_dims()[axis]
        rank = len(value.dim_sizes) + value.has_added_rows
        amounts = [amount if at == dim else 0 for amount in (before, after) for at in range(rank)]
        inputs = [value.name, mender.writer.constant(amounts)]
        inputs += [mender.writer.scalar(fill, value.dtype)] if mode == "constant" else []
        name = mender.emit("Pad", inputs, mode=mode)
        zero_padded = value.zero_padded and mode == "constant" and fill == 0 and after >= 0
        return value.with_name(name, groups=value.groups_with(axis, out), zero_padded=zero_padded)
    mender.refuse_if(min(before, after) < 0, f"takes steps away in the mode {mode}")
    mender.causes.append(f"in the mode {mode} it repeats the end of the padded width, not of the row")
    ends = mender.writer.per_row_column(size.by_length)
    last = mender.emit("Sub", [ends, mender.writer.constant([1])])
    index = mender.writer.unsqueezed(mender.writer.positions(out), [0])
    index = mender.emit("Sub", [index, mender.writer.constant([before])]) if before else index
    if mode == "edge":
        index = mender.emit("Min", [mender.emit("Max", [index, mender.writer.constant([0])]), last])
    elif mode == "reflect":
        mender.require_lengths(size.by_length > max(before, after))
        index = mender.emit("Abs", [index])
        beyond = mender.emit("Abs", [mender.emit("Sub", [last, index])])
        index = mender.emit("Sub", [last, beyond])
    elif mode == "wrap":
        index = mender.emit("Mod", [index, ends])
    else:
        mender.refuse(f"pads in the mode {mode}")
    return mender.take_per_row(value, axis, index, out)
