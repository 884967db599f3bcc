"""Rules for operators on shapes, and for those that only move, merge, split or repeat axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import numpy_helper

from lengthwise_export.mending.engine import movable, rule, values
from lengthwise_export.mending.mender import SHORTEST_RUN, Mender
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    MANY_ROWS,
    ROW_COUNTS,
    DataTensor,
    Group,
    KnownTensor,
    Size,
    Table,
    Value,
    axis_text,
    groups_of_one,
    has_size_one,
)

_MAX_CONSTANT: Final = 4096  # elements: a larger tensor that repeats one number is not written as a constant


@rule("Shape", takes=values)
def _shape(mender: Mender, inputs: list[Value]) -> KnownTensor:
    """Mends a Shape: the sizes of a tensor's axes, or of those in the range of its attributes `start` and `end`.

    The mended graph computes the sizes of the padded batch; the description has those of the original at each length.
    """
    (value,) = inputs
    groups = groups_of_one(map(mender.fixed_size, value.shape)) if isinstance(value, KnownTensor) else value.groups
    groups = groups[mender.attribute("start", 0) : mender.attribute("end")]
    if isinstance(value, KnownTensor) or value.has_original_axes:
        (name,) = mender.copy_node([value.name])
    else:
        name = mender.shape_at_width(groups)
    tables = [mender.axis_size(group).table for group in groups]
    none = np.zeros((ROW_COUNTS, len(mender.lengths), 0), np.int64)
    return KnownTensor(name, np.stack(tables, axis=-1) if tables else none)


@rule("Size")
def _size(mender: Mender, value: DataTensor) -> KnownTensor:
    """Mends the number of elements: computed for the padded batch, and known for the original at each length."""
    name = mender.emit("ReduceProd", [mender.shape_at_width(value.groups)], keepdims=0)
    return KnownTensor(name, mender.axis_size(value.dim_sizes).table)


@rule("Transpose")
def _transpose(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a change of the order of axes; the dims of a merged axis stay together, added rows stay in front."""
    order = mender.attribute("perm") or [*range(value.rank)][::-1]
    dims = [dim for axis in order for dim in value.dims_of(axis)]
    kept = mender.keep_node(value, perm=[*value.added_dims, *dims])
    return replace(kept, groups=tuple(value.groups[axis] for axis in order), zero_padded=value.zero_padded)


@rule("Reshape")
def _reshape(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a Reshape, which merges axes, splits them or keeps them.

    1. Axes of fixed size, or time with a fixed size after it, are merged or split: a Reshape.
    2. Rows and time are merged (`x.reshape(-1, F)`): the mended graph keeps them apart, and knows that they are one
       axis of the original.
    3. A merged axis is split as it was merged: the axes are as before.
    4. The shape has the rows at another axis than the tensor (alone there is only one row): they move there.
    5. Time is cut into pieces, or the sizes do not follow from the tensor: refused.

    Lengths at which the size that -1 stands for would not be a whole number are left out.
    """
    sizes = [Size(table) for table in mender.sizes_input(1, "its shape is").elements()]
    # 0 stands for the size that the axis has.
    if not mender.attribute("allowzero", 0):
        for index, group in enumerate(value.groups[: len(sizes)]):
            sizes[index] = mender.axis_size(group) if sizes[index].fixed == 0 else sizes[index]
    # -1 stands for what the other sizes leave over.
    total = mender.axis_size(value.dim_sizes)
    if any(size.fixed == -1 for size in sizes):
        known = mender.axis_size(tuple(size for size in sizes if size.fixed != -1))
        divisible = total.divisible_by(known)
        if not divisible[-SHORTEST_RUN:].all():  # at the longest lengths
            change = f"{_text(value.groups)} into {_text(groups_of_one(sizes))}"
            mender.refuse(f"cuts the steps into pieces of a fixed size: {change}")
        mender.require_lengths(divisible)
        quotient = Size(total.table // known.table)
        sizes = [quotient if size.fixed == -1 else size for size in sizes]
    return _regrouped(mender, value, sizes)


def _text(groups: Iterable[Group]) -> str:
    """The axes of a tensor as text, such as `[rows, time, 8]`."""
    return f"[{', '.join(map(axis_text, groups))}]"


def _regrouped(mender: Mender, value: DataTensor, sizes: Sequence[Size]) -> DataTensor:
    """The tensor after a Reshape of the original to axes of these sizes.

    If the dims of the mended graph stay as they are, only the groups of the description change; else a Reshape of the
    dims is written. What mixes rows or cuts steps into pieces is refused.
    """
    value, groups = _distributed(mender, value, sizes)
    regrouped = replace(value, groups=groups)
    added_rows = [mender.rows for _ in value.added_dims]
    old_dims, new_dims = [*added_rows, *value.dim_sizes], [*added_rows, *regrouped.dim_sizes]
    staying = {index for index, (old, new) in enumerate(zip(old_dims, new_dims, strict=False)) if old.equals(new)}
    if len(staying) == len(old_dims) == len(new_dims):
        return regrouped
    # Dims of fixed size are merged or split, the others stay in their order. In the shape of a Reshape, 0 is a dim that
    # stays at its index, and -1 one that moves; where several move, it needs the sizes.
    moving = [0 if index in staying else -1 for index in range(len(new_dims))]
    shape = [number if size.fixed is None else size.fixed for size, number in zip(new_dims, moving, strict=True)]
    if shape.count(-1) <= 1:
        return regrouped.with_name(mender.emit("Reshape", [regrouped.name, mender.writer.constant(shape)]))
    return regrouped.with_name(mender.emit_with_shape("Reshape", regrouped.name, new_dims))


def _distributed(mender: Mender, value: DataTensor, sizes: Sequence[Size]) -> tuple[DataTensor, tuple[Group, ...]]:
    """Distributes the dims of a tensor, in order, over the axes of another shape: a group of dims for each axis.

    For `[rows, time, 8]` and the sizes `[rows x time, 2, 4]` the groups are `(rows, time)`, `(2,)` and `(4,)`. For each
    axis, dims and parts of dims are taken until their product is its size:

    1. The next dim divides what is missing: it is taken as a whole.
    2. What is missing is a multiple of the number of rows, a later dim: the rows are moved here (`_with_rows_at`).
    3. What is missing divides the dim: a part is taken, and the rest of the dim stays for the next axis.
    4. Else the reshape mixes rows or cuts steps into pieces: refused.

    Returns:
        1. The tensor, transposed if its rows were moved.
        2. The groups.
    """
    target_text = f"into {_text(groups_of_one(sizes))}"
    rests = [*value.dim_sizes]  # of each dim, what is not taken yet; 1 if nothing is left
    groups = []
    for size in sizes:
        taken, missing = [], size  # `missing` is what the product of `taken` still lacks
        while missing.fixed != 1:
            index = next((index for index, rest in enumerate(rests) if rest.fixed != 1), None)
            if index is None:
                mender.refuse(f"reshapes {_text(value.groups)} {target_text}, whose sizes do not follow from it")
            rest = rests[index]
            counts_rows, part = rest.depends_on_rows, rest.divided_by(missing)
            if (quotient := missing.divided_by(rest)) is not None:  # case 1
                taken.append(rest)
                rests[index], missing = mender.size_one, quotient
            elif missing.depends_on_rows and not counts_rows:  # case 2
                value, rests = _with_rows_at(mender, value, rests, index)
            elif part is not None and part.fixed is not None and not counts_rows:  # case 3
                taken.append(missing)
                rests[index], missing = part, mender.size_one
            else:
                mender.refuse_if(counts_rows, CROSSES_ROWS)
                pieces = "cuts the steps into pieces, or its width is fixed"
                mender.refuse(f"reshapes {_text(value.groups)} {target_text}: {pieces}")
        groups.append(_merged(taken) or (mender.size_one,))
    if any(rest.fixed != 1 for rest in rests):
        mender.refuse(f"reshapes {_text(value.groups)} {target_text}, whose sizes do not follow from it")
    return value, tuple(groups)


def _merged(sizes: Iterable[Size]) -> Group:
    """The group of an axis: a fixed size is merged into the dim in front of it, unless that dim counts rows."""
    group: list[Size] = []
    for size in sizes:
        if group and not group[-1].depends_on_rows and size.fixed is not None:
            size = Size(group.pop().table * size.table)
        group.append(size)
    return tuple(group)


def _with_rows_at(
    mender: Mender, value: DataTensor, rests: Sequence[Size], target: int
) -> tuple[DataTensor, list[Size]]:
    """A tensor whose rows were moved forward to the dim `target`, and the rests of its dims in the new order.

    The original runs one sequence, whose axis of rows has size 1, so its Reshape may put that axis anywhere. In the
    mended graph the rows have to be moved there first.

    Args:
        mender: The mender.
        value: The tensor.
        rests: What is left of each dim.
        target: The index of the next dim to take.
    """
    rows_index = next((index for index, rest in enumerate(rests) if rest.is_rows), -1)
    # The rows pass the dims between, of which no part may be taken already.
    between = [*zip(rests, value.dim_sizes, strict=True)][target:rows_index]
    is_part_taken = any(rest is not size for rest, size in between)
    mender.refuse_if(rows_index < target or value.has_added_rows or is_part_taken, CROSSES_ROWS)
    cause = "it merges the rows with other axes, so that each row gets parts of others"
    value = value.because(cause if any(rest.fixed != 1 for rest, _ in between) else "")
    order = [*range(len(rests))]
    order.insert(target, order.pop(rows_index))
    groups = groups_of_one(value.dim_sizes[index] for index in order)
    moved = value.with_name(mender.writer.transposed(value.name, order), groups=groups)
    return moved, [rests[index] for index in order]


@rule("Flatten")
def _flatten(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends a Flatten as a Reshape: the axes before `axis` become one, and those from there on another."""
    axis = mender.attribute("axis", 1)
    axis += value.rank if axis < 0 else 0
    sizes = [mender.axis_size(tuple(itertools.chain(*part))) for part in (value.groups[:axis], value.groups[axis:])]
    return _regrouped(mender, value, sizes)


@rule("Squeeze", takes=movable)
def _squeeze(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the removal of axes of size 1; the removal of another axis is refused."""
    ones = [axis for axis, group in enumerate(value.groups) if has_size_one(group)]
    axes = mender.axes_of_node(value.rank)
    mender.refuse_if(not {*(axes or ones)} <= {*ones}, "removes an axis that does not have size 1 in a batch")
    return mender.squeezed(value, ones if axes is None else axes)


@rule("Unsqueeze", takes=movable)
def _unsqueeze(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the addition of axes of size 1."""
    axes = mender.constant_input(1).reshape(-1).tolist()
    return mender.unsqueezed(value, [axis % (value.rank + len(axes)) for axis in axes])


def _group_of(mender: Mender, table: Table) -> Group:
    """The group of an axis whose size was computed: of rows, time, a fixed size, or of rows and time.

    Refuses a size that depends on the rows in another way than by a product with them.
    """
    # `table[0]` is of one row, `table[1]` of MANY_ROWS
    size, time_size = Size(table), Size(np.stack([table[0], table[0]]))
    if not size.depends_on_rows:
        return (size,)
    mender.refuse_if(not (table[1] == table[0] * MANY_ROWS).all(), CROSSES_ROWS)
    return (mender.rows,) if size.is_rows else (mender.rows, time_size)


@rule("Expand", takes=movable)
def _expand(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the repetition along axes of size 1."""
    return _expanded(mender, value, mender.sizes_input(1, "its shape is").elements())


def _expanded(mender: Mender, value: DataTensor, tables: Sequence[Table]) -> DataTensor:
    """The tensor repeated along its axes of size 1, by an Expand.

    Args:
        mender: The mender.
        value: The tensor.
        tables: `[2, lengths]` for each axis of the output: its size in the original. As ONNX's Expand takes it, a size
            of 1 stands for the size that the axis has, and axes are aligned at the end.
    """
    # The groups of the output; an axis that has its size already keeps its own group.
    groups = [_group_of(mender, table) for table in tables]
    for axis in range(max(-len(groups), -value.rank), 0):  # counted from the end, where axes are aligned
        size, group = Size(tables[axis]), value.groups[axis]
        if mender.axis_size(group).equals(size):
            groups[axis] = group
        elif not (has_size_one(group) or size.fixed == 1 or mender.matches((mender.axis_size(group),), (size,))):
            mender.refuse(f"expands an axis of size {axis_text(group)} to {axis_text(groups[axis])}")
    # The tensor is aligned with another operand that has these groups. That is only a description, without a tensor.
    shape = DataTensor("", value.dtype, tuple(groups))
    (aligned, _), result = mender.align_axes([replace(value, is_row_index=False), shape])
    name = mender.expanded(aligned, result)
    zero_padded = value.zero_padded and len(result.time_dims()) == len(value.time_dims())
    return result.with_name(name, zero_padded=zero_padded, is_row_index=value.is_row_index)


@rule("Tile")
def _tile(mender: Mender, value: DataTensor) -> DataTensor:
    """Mends the repetition along any axes, each a number of times.

    1. Only axes of size 1 are repeated: as Expand.
    2. An axis of fixed size, a constant number of times: a Tile.
    3. The steps, a constant number of times: each row picks its own steps again, without the padding between.
    4. Merged axes, or the rows: refused.
    """
    tables = mender.sizes_input(1, "its repeats are").elements()
    # Case 1
    if all(has_size_one(group) or (table == 1).all() for group, table in zip(value.groups, tables, strict=True)):
        return _expanded(mender, value, tables)
    repeats = mender.constant_input(1).tolist()
    for axis, (group, count) in enumerate(zip(value.groups, repeats, strict=True)):
        if count != 1 and len(group) == 1 and group[0].is_time:  # case 3
            value = value.because("it repeats the padding together with the steps")
            own_size, new_size = mender.writer.per_row_column(group[0].by_length), Size(group[0].table * count)
            positions = mender.writer.unsqueezed(mender.writer.positions(new_size), [0])
            value = mender.take_per_row(value, axis, mender.emit("Mod", [positions, own_size]), new_size, clip=False)
            repeats[axis] = 1
        elif count != 1 and (len(group) != 1 or group[0].fixed is None):
            mender.refuse("repeats merged axes, or rows")
    # Case 2
    repeats_of_dims = [count for group, count in zip(value.groups, repeats, strict=True) for _ in group]
    name = mender.emit("Tile", [value.name, mender.writer.constant([*(1 for _ in value.added_dims), *repeats_of_dims])])
    groups = tuple(
        (mender.fixed_size((group[0].fixed or 1) * count),) if count != 1 else group
        for group, count in zip(value.groups, repeats, strict=True)
    )
    return value.with_name(name, groups=groups)


@rule("ConstantOfShape", takes=values)
def _constant_of_shape(mender: Mender, _: list[Value]) -> Value:
    """Mends a tensor that is filled with one number.

    1. Its shape is constant, and small: a constant.
    2. Else the number, expanded to sizes that are computed of the padded batch.
    """
    shape = mender.sizes_input(0, "its shape is")
    attribute = mender.attribute("value")
    number = np.zeros(1, np.float32) if attribute is None else numpy_helper.to_array(attribute)
    is_small = shape.constant is not None and shape.constant.prod() <= _MAX_CONSTANT
    array = np.full(shape.table[0, 0].tolist() if is_small else (), number.reshape(-1)[0])
    constant = mender.emit_constant(array)
    return constant if is_small else _expanded(mender, mender.as_data(constant), shape.elements())
