"""Operators that move axes: the meaning of each axis moves with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
from onnx import numpy_helper

from lengthwise_export.mending.mender import Mender, rule
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    MANY_ROWS,
    ROW_COUNTS,
    DataTensor,
    Group,
    KnownTensor,
    Size,
    Table,
    axis_text,
    groups_of_one,
    has_size_one,
)

_ENOUGH = 8  # as many lengths in a row at which a size can be divided are no chance
_SMALL = 4096  # the most elements of a constant that is kept as numbers


@rule("Shape")
def _shape(mender: Mender) -> None:
    """The sizes of a tensor: emits them at the width of the batch, and keeps them as a table (see `values`)."""
    value = mender.required_input(0)
    groups = groups_of_one(map(mender.fixed_size, value.shape)) if isinstance(value, KnownTensor) else value.groups
    start, end = mender.attribute("start", 0), mender.attribute("end")
    if isinstance(value, DataTensor) and (value.has_merged_axes or value.has_added_rows):
        name = mender.shape_at_width(groups[start:end])
    else:
        name = mender.copy_node([value.name])[0]
    tables = [mender.axis_size(group).table for group in groups[start:end]]
    table = np.stack(tables, axis=-1) if tables else np.zeros((ROW_COUNTS, mender.length_count, 0), np.int64)
    mender.set_output(KnownTensor(name, table))


@rule("Size")
def _size(mender: Mender) -> None:
    """The number of elements of a tensor, as `_shape`."""
    value = mender.data_input(0)
    name = mender.emit("ReduceProd", [mender.shape_at_width(value.groups)], keepdims=0)
    mender.set_output(KnownTensor(name, mender.axis_size(value.dim_sizes).table))


@rule("Transpose")
def _transpose(mender: Mender) -> None:
    """Axes in another order; the axes of a merged one stay together, an added axis of rows stays in front."""
    value = mender.data_input(0)
    order = mender.attribute("perm") or [*range(value.rank)][::-1]
    dims = [dim for axis in order for dim in value.dims_of(axis)]
    (name,) = mender.copy_node([value.name], perm=[0] * value.has_added_rows + dims)
    mender.set_output(value.with_name(name, groups=tuple(value.groups[axis] for axis in order)))


@rule("Reshape")
def _reshape(mender: Mender) -> None:
    """Axes that are merged, split or kept.

    1. Axes of fixed size, or time with a fixed size behind it, are merged or split: a Reshape.
    2. Rows and time are merged (`x.reshape(-1, F)`): the mended graph keeps them apart, and knows that they are one
       axis of the original.
    3. A merged axis is split as it was merged: the axes are as before.
    4. The rows are looked for at another axis than they have (alone there is only one): they move there.
    5. Time is cut into pieces, or the sizes do not follow from the tensor: refused. Lengths that are no multiple of
       a number are left out.
    """
    value = mender.data_input(0)
    sizes = [Size(table) for table in mender.sizes_input(1, "its shape is").elements()]
    if not mender.attribute("allowzero", 0):
        for index, group in enumerate(value.groups[: len(sizes)]):
            sizes[index] = mender.axis_size(group) if sizes[index].fixed == 0 else sizes[index]
    total = mender.axis_size(value.dim_sizes)
    if any(each.fixed == -1 for each in sizes):
        others = mender.axis_size(tuple(each for each in sizes if each.fixed != -1))
        divisible = total.divisible_by(others)
        if not divisible[-_ENOUGH:].all():
            change = f"{_text(value.groups)} into {_text(groups_of_one(sizes))}"
            mender.refuse(f"cuts the steps into pieces of a fixed size: {change}")
        mender.require_lengths(divisible)
        rest = Size(total.table // others.table)
        sizes = [rest if each.fixed == -1 else each for each in sizes]
    _regroup(mender, value, sizes)


def _text(groups: Iterable[Group]) -> str:
    """The axes of a tensor in words, such as `[rows, time, 8]`."""
    return f"[{', '.join(map(axis_text, groups))}]"


def _regroup(mender: Mender, value: DataTensor, sizes: Sequence[Size]) -> None:
    """Sets the output to the tensor with axes of these sizes of the original."""
    regrouping = _Regrouping(mender, value, sizes)
    regrouped = regrouping.groups()
    value, axes = regrouping.value, [each for group in regrouped for each in group]
    name, is_same = value.name, len(axes) == len(value.dim_sizes) and all(map(Size.equals, axes, value.dim_sizes))
    if not is_same:  # axes of fixed size are merged or split, the others stay in their order
        rows = [mender.rows] * value.has_added_rows
        old, new = [*rows, *value.dim_sizes], [*rows, *axes]
        stays = [index < len(old) and old[index].equals(size) for index, size in enumerate(new)]
        of_others = [0 if each else -1 for each in stays]
        target = [own if size.fixed is None else size.fixed for size, own in zip(new, of_others, strict=True)]
        if target.count(-1) <= 1:
            name = mender.emit("Reshape", [name, mender.writer.constant(target)])
        else:
            name = mender.emit_with_shape("Reshape", name, new)
    mender.set_output(value.with_name(name, groups=regrouped))


class _Regrouping:
    """The axes of a tensor, taken in turn into the axes of another shape; its rows may be moved on the way."""

    def __init__(self, mender: Mender, value: DataTensor, sizes: Sequence[Size]) -> None:
        self.value = value
        self._mender = mender
        self._sizes = sizes
        self._axes = [
            [size, size] for size in value.dim_sizes
        ]  # the rest of an axis that is not taken yet, and the axis
        self._next = 0  # the index of the next axis to take

    def groups(self) -> tuple[Group, ...]:
        """For each size, the axes and parts of axes that become one axis."""
        groups = tuple(self._group(size) for size in self._sizes)
        if any(rest.fixed != 1 for rest, _ in self._axes[self._next :]):
            self._refuse(", whose sizes do not follow from it")
        return groups

    def _group(self, left: Size) -> Group:
        """The axes and parts of axes that become one axis of this size."""
        group: list[Size] = []
        while left.fixed != 1:
            while self._next < len(self._axes) and self._axes[self._next][0].fixed == 1:
                self._next += 1
            if self._next == len(self._axes):
                self._refuse(", whose sizes do not follow from it")
            left = self._take(left, group)
        joined: list[Size] = []  # an axis of fixed size is one with that before it, unless that is the rows
        for size in group:
            if joined and not joined[-1].depends_on_rows and size.fixed is not None:
                joined[-1] = Size(joined[-1].table * size.table)
            else:
                joined.append(size)
        return tuple(joined) or (self._mender.size_one,)

    def _take(self, left: Size, group: list[Size]) -> Size:
        """Takes the next axis, or a part of it, into a group.

        1. The axis divides the size: it is taken as a whole.
        2. The size divides the axis: a part is taken, and the rest of the axis stays for the next group.
        3. The size counts rows, which come later: they move here, and the axis is tried again.
        4. Else the reshape mixes rows or cuts steps into pieces: refused.

        Args:
            left: The part of the group's size that the axes in the group do not make up yet.
            group: The group, to which the axis is added.

        Returns:
            What is then left of the group's size.
        """
        mender, axis = self._mender, self._axes[self._next][0]
        if (quotient := left.divided_by(axis)) is not None:
            group.append(axis)
            self._next += 1
            return quotient
        rest = axis.divided_by(left)
        if rest is not None and rest.fixed is not None and not (axis.depends_on_rows or left.depends_on_rows):
            group.append(left)
            self._axes[self._next][0] = rest
            return mender.size_one
        if left.depends_on_rows and not axis.depends_on_rows:
            self._move_rows()
            return left
        mender.refuse_if(axis.depends_on_rows, CROSSES_ROWS)
        self._refuse(": cuts the steps into pieces, or its width is fixed")

    def _move_rows(self) -> None:
        """Transposes the rows to the next axis, where the original takes them: a lone sequence has only one row."""
        mender, value, axes, target = self._mender, self.value, self._axes, self._next
        rows_dim = next((index for index, (size, _) in enumerate(axes) if size.is_rows), None)
        if rows_dim is None or rows_dim < target or value.has_added_rows:
            mender.refuse(CROSSES_ROWS)
        between = axes[target:rows_dim]
        mender.refuse_if(any(rest is not whole for rest, whole in between), CROSSES_ROWS)
        if any(rest.fixed != 1 for rest, _ in between):
            mender.causes.append("it merges the rows with other axes, so that each row gets parts of others")
        order = [*range(len(axes))]
        order.insert(target, order.pop(rows_dim))
        self._axes = [axes[index] for index in order]
        groups = tuple((whole,) for _, whole in self._axes)
        self.value = value.with_name(mender.writer.transposed(value.name, order), groups=groups)

    def _refuse(self, why: str) -> NoReturn:
        """Refuses the new shape."""
        self._mender.refuse(f"reshapes {_text(self.value.groups)} into {_text(groups_of_one(self._sizes))}{why}")


@rule("Flatten")
def _flatten(mender: Mender) -> None:
    """All axes in front of one as one axis, and all others as another: as Reshape."""
    value = mender.data_input(0)
    axis = mender.attribute("axis", 1)
    axis += value.rank if axis < 0 else 0
    parts = (value.groups[:axis], value.groups[axis:])
    _regroup(mender, value, [mender.axis_size(tuple(size for group in part for size in group)) for part in parts])


@rule("Squeeze")
def _squeeze(mender: Mender) -> None:
    """A tensor without axes of size 1; with one of another size it is refused."""
    value = mender.movable_input(0)
    axes = mender.axes_of_node(value.rank)
    if axes is None:
        axes = [axis for axis, group in enumerate(value.groups) if has_size_one(group)]
    mender.refuse_if(
        not all(has_size_one(value.groups[axis]) for axis in axes),
        "removes an axis that does not have size 1 in a batch",
    )
    mender.set_output(mender.squeezed(value, axes))


@rule("Unsqueeze")
def _unsqueeze(mender: Mender) -> None:
    """A tensor with more axes of size 1."""
    value, axes = mender.movable_input(0), mender.required_constant(1).reshape(-1).tolist()
    mender.set_output(mender.unsqueezed(value, [axis % (value.rank + len(axes)) for axis in axes]))


def _group_of(mender: Mender, table: Table) -> Group:
    """The axes that a computed size stands for: rows, time, a fixed size, or a product with the rows."""
    whole = Size(table)
    if whole.fixed is not None or whole.is_time:
        return (whole,)
    if whole.is_rows:
        return (mender.rows,)
    mender.refuse_if(not (table[1] == table[0] * MANY_ROWS).all(), CROSSES_ROWS)
    return (mender.rows, Size(np.stack([table[0], table[0]])))


@rule("Expand")
def _expand(mender: Mender) -> None:
    """A tensor repeated along axes of size 1, up to sizes at the width of the batch; see `_expanded`."""
    _expanded(mender, mender.movable_input(0), mender.sizes_input(1, "its shape is").elements())


def _expanded(mender: Mender, value: DataTensor, tables: Sequence[Table]) -> None:
    """Sets the output to the tensor with axes of size 1 repeated to sizes of the original, `[2, lengths]` each."""
    groups = [_group_of(mender, table) for table in tables]
    for axis in range(max(-len(groups), -value.rank), 0):  # an axis that has the size already stays what it is
        size, own = Size(tables[axis]), value.groups[axis]
        is_same = mender.axis_size(own).equals(size)
        groups[axis] = own if is_same else groups[axis]
        matches = (
            is_same
            or has_size_one(own)
            or has_size_one(groups[axis])
            or mender.matches((mender.axis_size(own),), (size,))
        )
        mender.refuse_if(not matches, f"expands an axis of size {axis_text(own)} to {axis_text(groups[axis])}")
    target = DataTensor("", value.dtype, tuple(groups))
    (fitted, _), whole, has_added_rows = mender.align_axes([value.with_name(value.name, is_row_index=False), target])
    expanded = mender.expanded(fitted, whole, has_added_rows)
    more = sum(size.is_time for group in whole for size in group) > len(value.time_dims())
    mender.set_output(
        DataTensor(expanded, value.dtype, whole, has_added_rows, value.zero_padded and not more, value.is_row_index)
    )


@rule("Tile")
def _tile(mender: Mender) -> None:
    """A tensor repeated along its axes.

    1. Only axes of size 1 are repeated: as Expand.
    2. An axis of fixed size, a constant number of times: a Tile.
    3. The steps, a constant number of times: each row picks its own steps again, without the padding between.
    4. Merged axes, or the rows: refused.
    """
    value, tables = mender.data_input(0), mender.sizes_input(1, "its repeats are").elements()
    if all(has_size_one(group) or (table == 1).all() for group, table in zip(value.groups, tables, strict=True)):
        _expanded(mender, value, tables)
        return
    counts = mender.required_constant(1).copy()
    for axis, (group, count) in enumerate(zip(value.groups, counts.tolist(), strict=True)):
        if count != 1 and len(group) == 1 and group[0].is_time:
            mender.causes.append("it repeats the padding together with the steps")
            own, out = mender.writer.per_row_column(group[0].by_length), Size(group[0].table * count)
            indices = mender.emit("Mod", [mender.writer.unsqueezed(mender.writer.positions(out), [0]), own])
            value = mender.take_per_row(value, axis, indices, out, clip=False)
            counts[axis] = 1
        elif count != 1 and (len(group) != 1 or group[0].fixed is None):
            mender.refuse("repeats merged axes, or rows")
    repeats = [count for group, count in zip(value.groups, counts.tolist(), strict=True) for _ in group]
    name = mender.emit("Tile", [value.name, mender.writer.constant([1] * value.has_added_rows + repeats)])
    groups = tuple(
        (mender.fixed_size((group[0].fixed or 1) * count),) if count != 1 else group
        for group, count in zip(value.groups, counts.tolist(), strict=True)
    )
    mender.set_output(value.with_name(name, groups=groups))


@rule("ConstantOfShape")
def _constant_of_shape(mender: Mender) -> None:
    """A tensor of one number.

    1. Its shape is constant, and small: a constant.
    2. Else the number, expanded to sizes at the width of the batch.
    """
    shape = mender.sizes_input(0, "its shape is")
    attribute = mender.attribute("value")
    fill = np.zeros(1, np.float32) if attribute is None else numpy_helper.to_array(attribute)
    scalar = mender.writer.constant(fill.reshape(()), dtype=fill.dtype)
    if shape.is_constant and shape.table[0, 0].prod() <= _SMALL:
        whole = np.full(tuple(shape.table[0, 0].tolist()), fill.reshape(-1)[0])
        mender.set_output(mender.constant_tensor(mender.writer.constant(whole, dtype=whole.dtype), whole))
        return
    _expanded(mender, mender.as_data(mender.constant_tensor(scalar, fill.reshape(()))), shape.elements())
