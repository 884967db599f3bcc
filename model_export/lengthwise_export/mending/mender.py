"""What all rules use: masks, alignment of rows, and moves within a row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

import numpy as np
from onnx import NodeProto, TensorProto, helper

from lengthwise_export.mending.node_mender import NodeMender
from lengthwise_export.mending.values import CROSSES_ROWS, Group, Ragged, Size, Table, Value, is_one, shown


class Mender(NodeMender):
    """Follows the values of a graph and writes the mended one."""

    follow: Callable[[Mender, NodeProto], Sequence[object]]  # mends one node, and returns what changed

    # -- masks --------------------------------------------------------------------------------------------------------

    def masked(self, value: Ragged, dims: Iterable[int], fill: float) -> Ragged:
        """The tensor with a number beyond each row's own positions, along these axes of time of the tensor."""
        dims, times = sorted(dims), value.times()
        if not dims or (fill == 0 and value.zeroed):
            return value
        adds_rows = value.rows_at is None
        rank = len(value.axes) + (value.row_added or adds_rows)

        def build() -> str:
            masks = [self.mask_over(times[dim], dim + adds_rows, value.rows_at or 0, rank) for dim in dims]
            valid = functools.reduce(lambda one, other: self.emit("And", [one, other]), masks)
            return self.emit("Where", [valid, value.name, self.writer.scalar_of(fill, value.dtype)])

        name = self.writer.once(("masked", value.name, tuple(dims), repr(fill)), build)
        zeroed = fill == 0 and len(dims) == len(times)
        return value.called(name, row_added=value.row_added or adds_rows, zeroed=zeroed)

    def mask_over(self, size: Size, dim: int, rows_at: int, rank: int) -> str:
        """The mask of one axis of time, with the axes of a tensor: bool, of size 1 but at the rows and at this axis."""
        mask = self.writer.mask(size)

        def build() -> str:
            turned = self.writer.transposed(mask, (1, 0) if dim < rows_at else (0, 1))
            return self.writer.unsqueezed(turned, [axis for axis in range(rank) if axis not in (dim, rows_at)])

        return self.writer.once(("mask over", mask, dim, rows_at, rank), build)

    def last_choice(self, dtype: int, *, largest: bool = True, finite: bool = False) -> float:
        """The number that comes last where the largest (or the smallest) is chosen; by default behind an infinity."""
        kind = helper.tensor_dtype_to_np_dtype(dtype)
        if not np.issubdtype(kind, np.floating):
            return int(np.iinfo(kind).min if largest else np.iinfo(kind).max)
        number = float(np.finfo(kind).max) if finite else np.inf
        return -number if largest else number

    # -- broadcasting -------------------------------------------------------------------------------------------------

    def align(
        self, values: Sequence[Value], *, free: int = 0, keep: int | None = None
    ) -> tuple[list[Ragged], tuple[Group, ...], bool]:
        """Operands with axes that broadcast (but for the last `free`, and `keep`), their groups; were rows added?"""
        operands = [self.as_ragged(value) for value in values]
        rank = max(operand.rank - free for operand in operands)
        targets: list[Group] = []
        for axis in range(rank):
            group: Group = (self.one,)
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
        row_added = any(operand.row_added for operand in operands) and not has_rows
        fitted = [self._fitted(operand, targets, free, has_rows, keep) for operand in operands]
        return fitted, tuple(targets), row_added

    def spread(self, value: Ragged, groups: Sequence[Group], row_added: bool, keep: int | None = None) -> str:
        """An operand that `align` fitted, repeated along the axes that it lacks, but for `keep`."""
        own = [*[(self.one,)] * (len(groups) - value.rank), *value.groups]
        moved_rows = value.row_added and not row_added
        sizes: list[Size | None] = [None if value.row_added else self.rows] * row_added
        for axis, (group, before) in enumerate(zip(groups, own, strict=True)):
            is_whole = axis == keep or not is_one(before)
            sizes += [None if is_whole or (moved_rows and size.is_rows) or size.fixed == 1 else size for size in group]
        return self.shaped("Expand", value.name, sizes) if any(sizes) else value.name

    def combined(self, kind: str, left: Value, right: Value) -> Ragged:
        """Two tensors that broadcast, joined by an operator, with the element type of the first."""
        (one, other), groups, row_added = self.align([left, right])
        return Ragged(self.emit(kind, [one.name, other.name]), one.dtype, groups, row_added)

    def _refuse_pair(self, one: Group, other: Group) -> NoReturn:
        """Refuses to combine two axes that do not match."""
        both = f"{shown(one)} and {shown(other)}"
        self.refuse_if(
            self.size_of(one).same(self.size_of(other)),
            f"combines axes that were merged of different ones, {both}: keep rows and steps as own axes",
        )
        self.refuse(f"combines axes of different sizes, {both}: its width is fixed, or it combines different steps")

    def _is_one_or_none(self, group: Group) -> bool:
        """Whether an axis has size 1; lengths at which the axis is empty are left out, see `require`."""
        table = self.size_of(group).table
        if not table.any() or (table > 1).any():
            return False
        self.require((table == 1).all(axis=0))
        return True

    def _fitted(self, value: Ragged, targets: Sequence[Group], free: int, has_rows: bool, keep: int | None) -> Ragged:
        """One operand with axes of size 1 where it has none, and its added rows where the others have theirs.

        Each dim has a label: `rows` for the added rows, else the axis and the index in its group; None for a new dim.
        """
        before = len(targets) - (value.rank - free)
        current: list[object] = ["rows"] if value.row_added else []
        for axis_before, group in enumerate(value.groups):
            current += [(axis_before + before, axis) for axis in range(len(group))]
        labels: list[object] = ["rows"] if value.row_added and not has_rows else []
        for axis, target in enumerate(targets):
            group = value.groups[axis - before] if axis >= before else ()
            own_labels = [(axis, at) for at in range(len(group))]
            if axis == keep and axis >= before:
                labels += own_labels
                continue
            axes = iter(own_labels[:1] if is_one(group) else own_labels)
            moved = value.row_added and has_rows
            labels += ["rows" if moved and size.is_rows else next(axes, None) for size in target]
        labels += current[len(current) - sum(map(len, value.groups[value.rank - free :])) :] if free else []
        if not value.row_added:  # broadcasting adds axes in front
            while labels and labels[0] is None:
                labels.pop(0)
        present = [label for label in current if label in labels]
        name = self.writer.squeezed(value.name, [at for at, label in enumerate(current) if label not in labels])
        name = self.writer.transposed(name, [present.index(label) for label in labels if label is not None])
        return value.called(self.writer.unsqueezed(name, [at for at, label in enumerate(labels) if label is None]))

    # -- moves within a row -------------------------------------------------------------------------------------------

    def single(self, value: Ragged, axis: int) -> tuple[int, Size]:
        """The tensor's one axis that is an axis of the original, and its size."""
        group = value.groups[axis]
        self.refuse_if(
            len(group) != 1, f"works along an axis that was merged of {shown(group)}: keep the steps in their own axis"
        )
        return value.starts()[axis], group[0]

    def within(self, value: Ragged, axis: int) -> tuple[int, Size]:
        """As `single`, for an operator that mixes what is along the axis: it must not be the rows."""
        dim, size = self.single(value, axis)
        self.keep_rows_apart((size,))
        return dim, size

    def padded_with(self, value: Ragged, axis: int, fill: float, cause: str) -> Ragged:
        """The tensor with a number beyond each row's own steps, if the axis is one of time; notes the cause."""
        dim, size = self.within(value, axis)
        if not size.is_time:
            return value
        self.causes.append(cause)
        return self.masked(value, [dim], fill)

    def take(self, value: Ragged, axis: int, index: str, size: Size, *, clip: bool = True) -> Ragged:
        """Picks positions along an axis of the original by an index `[rows, size]` int64, other ones for each row."""
        dim, own = self.single(value, axis)
        if clip:  # positions beyond the width, which only padding has, become the last or the first
            last = self.emit("Sub", [self.writer.at_width(own), self.writer.constant([1])])
            index = self.emit("Min", [self.emit("Max", [index, self.writer.constant([0])]), last])
        rank, rows_at = len(value.axes) + value.row_added, value.rows_at
        front = [dim] if rows_at is None else [rows_at, dim]
        order = [*front, *(at for at in range(rank) if at not in front)]
        back = [order.index(at) for at in range(rank)]
        index = index if rows_at is None else self.writer.unsqueezed(index, [2])
        turned = self.writer.transposed(value.name, order)
        if rows_at is None:
            picked, back = self.emit("Gather", [turned, index], axis=0), [0, *(at + 1 for at in back)]
        else:
            picked = self.emit("GatherND", [turned, index], batch_dims=1)
        row_added = value.row_added or rows_at is None
        return Ragged(self.writer.transposed(picked, back), value.dtype, value.resized(axis, size), row_added)

    def positions(self, start: Table, step: int, size: Size) -> str:
        """`[rows, size]` int64: the positions start, start + step, ... of each row; `start` is `[lengths]`."""
        positions = self.writer.positions(size)
        if step != 1:
            positions = self.emit("Mul", [positions, self.writer.constant(np.int64(step))])
        return self.emit("Add", [self.writer.column(start.astype(np.int64)), positions])

    def size_vector(self, groups: Iterable[Group]) -> str:
        """`[axes]` int64: the sizes of axes of the original at the width of the batch."""
        parts = [self.at_width(group) for group in groups]
        return self.emit("Concat", parts, axis=0) if parts else self.writer.constant(np.zeros(0, np.int64))

    def shaped(self, kind: str, name: str, sizes: Iterable[Size | None]) -> str:
        """The tensor reshaped or expanded (`kind`) to these sizes at the width of the batch; to 1 for None."""
        parts = [self.writer.constant([1]) if size is None else self.writer.at_width(size) for size in sizes]
        return self.emit(kind, [name, self.emit("Concat", parts, axis=0)])

    def at_width(self, group: Group) -> str:
        """`[1]` int64: how long an axis of the original is in the padded batch: the product of `Writer.at_width`."""
        total = self.writer.at_width(group[0])
        for size in group[1:]:
            total = self.emit("Mul", [total, self.writer.at_width(size)])
        return total

    def size_of(self, group: Group) -> Size:
        """The size of an axis of the original."""
        return Size.product(group, self.count)

    def merged(self, value: Ragged) -> str:
        """The tensor in the shape that the original has, its merged axes as one."""
        if not value.is_merged:
            return value.name
        self.refuse_if(value.row_added, "merges axes of a value that differs between rows only by their lengths")
        return self.emit("Reshape", [value.name, self.size_vector(value.groups)])

    def split_first(self, name: str, group: Group, rank: int) -> str:
        """A tensor whose first axis is merged, with the axes of this group instead of it."""
        if len(group) == 1:
            return name
        rest = self.emit("Shape", [name], start=1)
        parts = [self.writer.at_width(size) for size in group]
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
