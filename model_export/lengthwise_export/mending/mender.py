"""What all rules use: masks, alignment of rows, and moves within a row."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

import numpy as np
from onnx import NodeProto, TensorProto, helper

from lengthwise_export.mending.node_mender import NodeMender
from lengthwise_export.mending.values import (
    CROSSES_ROWS,
    DataTensor,
    Group,
    Size,
    Table,
    Value,
    axis_text,
    has_size_one,
)


class Mender(NodeMender):
    """Follows the values of a graph and writes the mended one."""

    follow: Callable[[Mender, NodeProto], Sequence[object]]  # mends one node, and returns what changed

    # -- masks --------------------------------------------------------------------------------------------------------

    def masked(self, value: DataTensor, dims: Iterable[int], fill: float) -> DataTensor:
        """The tensor with a number beyond each row's own positions, along these axes of time of the tensor."""
        dims, times = sorted(dims), value.time_dims()
        if not dims or (fill == 0 and value.zero_padded):
            return value
        adds_rows = value.rows_dim is None
        rank = len(value.dim_sizes) + (value.has_added_rows or adds_rows)

        def build() -> str:
            masks = [self.broadcast_mask(times[dim], dim + adds_rows, value.rows_dim or 0, rank) for dim in dims]
            valid = functools.reduce(lambda mask, other: self.emit("And", [mask, other]), masks)
            return self.emit("Where", [valid, value.name, self.writer.scalar(fill, value.dtype)])

        name = self.writer.emit_once(("masked", value.name, tuple(dims), repr(fill)), build)
        zero_padded = fill == 0 and len(dims) == len(times)
        return value.with_name(name, has_added_rows=value.has_added_rows or adds_rows, zero_padded=zero_padded)

    def broadcast_mask(self, size: Size, dim: int, rows_dim: int, rank: int) -> str:
        """The mask of an axis of time, bool, to broadcast with a tensor: of size 1 except at the rows and this axis."""
        mask = self.writer.mask(size)

        def build() -> str:
            turned = self.writer.transposed(mask, (1, 0) if dim < rows_dim else (0, 1))
            return self.writer.unsqueezed(turned, [axis for axis in range(rank) if axis not in (dim, rows_dim)])

        return self.writer.emit_once(("mask over", mask, dim, rows_dim, rank), build)

    def neutral_extreme(self, dtype: int, *, largest: bool = True, finite: bool = False) -> float:
        """The number to fill padding with, so that it is never chosen as the largest (or the smallest).

        By default an infinity; with `finite` the most extreme finite number.
        """
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        if not np.issubdtype(kind, np.floating):
            return int(np.iinfo(kind).min if largest else np.iinfo(kind).max)
        number = float(np.finfo(kind).max) if finite else np.inf
        return -number if largest else number

    # -- broadcasting -------------------------------------------------------------------------------------------------

    def align_axes(
        self, values: Sequence[Value], *, free: int = 0, keep: int | None = None
    ) -> tuple[list[DataTensor], tuple[Group, ...], bool]:
        """Moves the axes of operands to where they broadcast.

        Args:
            values: The operands.
            free: The number of axes at the end of each operand that need not match, such as those of matrices.
            keep: An axis of the result along which the operands need not match, such as that of a Concat.

        Returns:
            The operands; the groups of axes of the result, without the free ones; whether it has an added axis of rows.
        """
        operands = [self.as_data(value) for value in values]
        rank = max(operand.rank - free for operand in operands)
        targets: list[Group] = []
        for axis in range(rank):
            group: Group = (self.size_one,)
            for operand in operands:
                own = axis - rank + operand.rank - free
                if own < 0 or axis == keep or self._is_one_or_none(operand.groups[own]):
                    continue
                if self._is_one_or_none(group):
                    group = operand.groups[own]
                elif not self.matches(group, operand.groups[own]):
                    self._refuse_pair(group, operand.groups[own])
            targets.append(group)
        flat = [size for group in targets for size in group]
        self.refuse_if(sum(size.is_rows for size in flat) > 1, CROSSES_ROWS)
        has_rows = any(size.is_rows for size in flat)
        has_added_rows = any(operand.has_added_rows for operand in operands) and not has_rows
        fitted = [self._fitted(operand, targets, free, has_rows, keep) for operand in operands]
        return fitted, tuple(targets), has_added_rows

    def expanded(
        self, value: DataTensor, groups: Sequence[Group], has_added_rows: bool, keep: int | None = None
    ) -> str:
        """An operand of `align`, repeated along the axes where it has size 1 and the others do not, except `keep`."""
        own = [*[(self.size_one,)] * (len(groups) - value.rank), *value.groups]
        moved_rows = value.has_added_rows and not has_added_rows
        sizes: list[Size | None] = [None if value.has_added_rows else self.rows] * has_added_rows
        for axis, (group, before) in enumerate(zip(groups, own, strict=True)):
            is_whole = axis == keep or not has_size_one(before)
            sizes += [None if is_whole or (moved_rows and size.is_rows) or size.fixed == 1 else size for size in group]
        return self.emit_with_shape("Expand", value.name, sizes) if any(sizes) else value.name

    def broadcast_node(self, kind: str, left: Value, right: Value) -> DataTensor:
        """Two tensors that broadcast, joined by an operator, with the element type of the first."""
        (first, second), groups, has_added_rows = self.align_axes([left, right])
        return DataTensor(self.emit(kind, [first.name, second.name]), first.dtype, groups, has_added_rows)

    def _refuse_pair(self, one: Group, other: Group) -> NoReturn:
        """Refuses to combine two axes that do not match."""
        both = f"{axis_text(one)} and {axis_text(other)}"
        self.refuse_if(
            self.axis_size(one).equals(self.axis_size(other)),
            f"combines axes that were merged of different ones, {both}: keep rows and steps as own axes",
        )
        self.refuse(f"combines axes of different sizes, {both}: its width is fixed, or it combines different steps")

    def _is_one_or_none(self, group: Group) -> bool:
        """Whether an axis has size 1 wherever it is not empty; restricts the mend to those lengths, see `require`."""
        table = self.axis_size(group).table
        if not table.any() or (table > 1).any():
            return False
        self.require_lengths((table == 1).all(axis=0))
        return True

    def _fitted(
        self, value: DataTensor, targets: Sequence[Group], free: int, has_rows: bool, keep: int | None
    ) -> DataTensor:
        """An operand with axes of size 1 where it lacks an axis, and its added rows where the others have their rows.

        Its dims get labels, in their order before (`current`) and after (`labels`): `rows` for the added rows, None for
        a new dim, else the axis and the index in its group. The tensor is squeezed, transposed and unsqueezed by these.
        """
        missing = len(targets) - (value.rank - free)  # axes that broadcasting adds in front
        current: list[object] = ["rows"] if value.has_added_rows else []
        for axis, group in enumerate(value.groups):
            current += [(axis + missing, index) for index in range(len(group))]
        labels: list[object] = ["rows"] if value.has_added_rows and not has_rows else []
        for axis, target in enumerate(targets):
            group = value.groups[axis - missing] if axis >= missing else ()
            own_labels = [(axis, index) for index in range(len(group))]
            if axis == keep and axis >= missing:
                labels += own_labels
                continue
            remaining = iter(own_labels[:1] if has_size_one(group) else own_labels)
            moves_rows = value.has_added_rows and has_rows
            labels += ["rows" if moves_rows and size.is_rows else next(remaining, None) for size in target]
        labels += current[len(current) - sum(map(len, value.groups[value.rank - free :])) :] if free else []
        if not value.has_added_rows:  # broadcasting adds axes in front
            labels = [*itertools.dropwhile(lambda label: label is None, labels)]
        kept = [label for label in current if label in labels]
        name = self.writer.squeezed(value.name, [dim for dim, label in enumerate(current) if label not in labels])
        name = self.writer.transposed(name, [kept.index(label) for label in labels if label is not None])
        return value.with_name(self.writer.unsqueezed(name, [dim for dim, label in enumerate(labels) if label is None]))

    # -- moves within a row -------------------------------------------------------------------------------------------

    def only_dim(self, value: DataTensor, axis: int) -> tuple[int, Size]:
        """The dim that is an axis of the original, and its size; refused if the axis is several dims."""
        group = value.groups[axis]
        self.refuse_if(
            len(group) != 1,
            f"works along an axis that was merged of {axis_text(group)}: keep the steps in their own axis",
        )
        return value.first_dims()[axis], group[0]

    def mixed_dim(self, value: DataTensor, axis: int) -> tuple[int, Size]:
        """As `single`, for an operator that mixes the values along the axis: refused if it is the rows."""
        dim, size = self.only_dim(value, axis)
        self.refuse_rows((size,))
        return dim, size

    def fill_padding(self, value: DataTensor, axis: int, fill: float, cause: str) -> DataTensor:
        """The tensor with `fill` at padding along an axis, if this is one of time; then also notes the cause."""
        dim, size = self.mixed_dim(value, axis)
        if not size.is_time:
            return value
        self.causes.append(cause)
        return self.masked(value, [dim], fill)

    def take_per_row(self, value: DataTensor, axis: int, index: str, size: Size, *, clip: bool = True) -> DataTensor:
        """`value[row, index[row]]` along an axis of the original: each row picks its own positions.

        Args:
            value: The tensor; one that is the same for all rows gets an added axis of rows.
            axis: The axis of the original.
            index: `[rows, size]` int64.
            size: The size of the axis in the result.
            clip: Whether an index outside of the axis, which only padding has, becomes its first or last position.
        """
        dim, old_size = self.only_dim(value, axis)
        if clip:
            last = self.emit("Sub", [self.writer.size_at_width(old_size), self.writer.constant([1])])
            index = self.emit("Min", [self.emit("Max", [index, self.writer.constant([0])]), last])
        rank, rows_dim = len(value.dim_sizes) + value.has_added_rows, value.rows_dim
        front = [dim] if rows_dim is None else [rows_dim, dim]
        order = [*front, *(other for other in range(rank) if other not in front)]
        inverse = [order.index(other) for other in range(rank)]
        index = index if rows_dim is None else self.writer.unsqueezed(index, [2])
        transposed = self.writer.transposed(value.name, order)
        if rows_dim is None:
            picked, inverse = self.emit("Gather", [transposed, index], axis=0), [0, *(other + 1 for other in inverse)]
        else:
            picked = self.emit("GatherND", [transposed, index], batch_dims=1)
        has_added_rows = value.has_added_rows or rows_dim is None
        return DataTensor(
            self.writer.transposed(picked, inverse), value.dtype, value.groups_with(axis, size), has_added_rows
        )

    def strided_positions(self, start: Table, step: int, size: Size) -> str:
        """`[rows, size]` int64: the positions start, start + step, ... of each row; `start` is `[lengths]`."""
        positions = self.writer.positions(size)
        if step != 1:
            positions = self.emit("Mul", [positions, self.writer.constant(np.int64(step))])
        return self.emit("Add", [self.writer.per_row_column(start.astype(np.int64)), positions])

    def shape_at_width(self, groups: Iterable[Group]) -> str:
        """`[axes]` int64: the sizes of axes of the original at the width of the batch."""
        parts = [self.axis_size_at_width(group) for group in groups]
        return self.emit("Concat", parts, axis=0) if parts else self.writer.constant(np.zeros(0, np.int64))

    def emit_with_shape(self, kind: str, name: str, sizes: Iterable[Size | None]) -> str:
        """The tensor reshaped or expanded (`kind`) to these sizes at the width of the batch; to 1 for None."""
        parts = [self.writer.constant([1]) if size is None else self.writer.size_at_width(size) for size in sizes]
        return self.emit(kind, [name, self.emit("Concat", parts, axis=0)])

    def axis_size_at_width(self, group: Group) -> str:
        """`[1]` int64: the size of an axis of the original in the padded batch, the product of those of its dims."""
        total = self.writer.size_at_width(group[0])
        for size in group[1:]:
            total = self.emit("Mul", [total, self.writer.size_at_width(size)])
        return total

    def axis_size(self, group: Group) -> Size:
        """The size of an axis of the original."""
        return Size.product(group, self.length_count)

    def in_original_shape(self, value: DataTensor) -> str:
        """The tensor in the shape that the original has, its merged axes as one."""
        if not value.has_merged_axes:
            return value.name
        self.refuse_if(value.has_added_rows, "merges axes of a value that differs between rows only by their lengths")
        return self.emit("Reshape", [value.name, self.shape_at_width(value.groups)])

    def unsqueezed(self, value: DataTensor, axes: Sequence[int]) -> DataTensor:
        """The tensor with more axes of size 1; `axes` are their indices in the result."""
        others = iter(value.groups)
        groups = tuple((self.size_one,) if axis in axes else next(others) for axis in range(value.rank + len(axes)))
        wider = value.with_name(value.name, groups=groups)
        return wider.with_name(self.writer.unsqueezed(value.name, [wider.first_dims()[axis] for axis in sorted(axes)]))

    def squeezed(self, value: DataTensor, axes: Sequence[int]) -> DataTensor:
        """The tensor without axes of size 1; a negative axis is counted from the end."""
        removed = [axis % value.rank for axis in axes]
        name = self.writer.squeezed(value.name, [dim for axis in removed for dim in value.dims_of(axis)])
        return value.with_name(
            name, groups=tuple(group for axis, group in enumerate(value.groups) if axis not in removed)
        )

    def unmerge_first_axis(self, name: str, group: Group, rank: int) -> str:
        """A tensor whose first axis is merged, reshaped to the axes of its group; see `merged`."""
        if len(group) == 1:
            return name
        rest = self.emit("Shape", [name], start=1)
        parts = [self.writer.size_at_width(size) for size in group]
        return self.emit("Reshape", [name, self.emit("Concat", [*parts, *([rest] if rank > 1 else [])], axis=0)])


Rule = Callable[[Mender], None]  # mends `Mender.node`: emits what stands for it, and sets its outputs
RULES: Final[dict[str, Rule]] = {}  # the rule for each operator of ONNX that can be mended


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers the rule for some operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


FLOAT: Final = TensorProto.FLOAT
INT64: Final = TensorProto.INT64
BOOL: Final = TensorProto.BOOL
