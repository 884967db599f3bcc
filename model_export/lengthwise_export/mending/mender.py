"""What the rules of all operators share: masks, the alignment of axes, and picking within each row.

An *axis* is one of the original's tensor, a *dim* one of the mended graph's. The *group* of an axis has the sizes of
the dims that it consists of: several if the original merged axes, as `(rows, time)` for the first axis of
`x.reshape(-1, F)`. A size is of *rows*, of *time* (it depends on the length) or *fixed*. *Added rows* are dim 0 of a
tensor that the original has once and each row has its own; they belong to no axis. A row's *own size* along a dim of
time is the size that the original has for this sequence alone; after it is padding. A `DataTensor` describes a tensor
of the mended graph, a `KnownTensor` one whose numbers are known for each length.
Methods that write nodes return the name, or the description, of the result.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NoReturn, TypeVar

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
    """The mend of one graph, with the operations that rules share; `NodeMender` has the node that is being mended."""

    # Mends one node; returns the changed operator in a list, empty if the node stays as it is
    follow: Callable[[Mender, NodeProto], Sequence[object]]

    # -- masks --------------------------------------------------------------------------------------------------------

    def masked(self, value: DataTensor, dims: Iterable[int], fill: float) -> DataTensor:
        """The tensor with the number `fill` at the padding of these dims of time: `Where(mask, value, fill)`.

        A tensor that is the same for all rows gets added rows.
        """
        dims, times = sorted(dims), value.time_dims()
        if not dims or (fill == 0 and value.zero_padded):
            return value
        adds_rows = value.rows_dim is None  # the mask has a dim of rows, which broadcasting then adds in front
        rank = value.dim_count + adds_rows

        def build() -> str:
            masks = [self.broadcast_mask(times[dim], dim + adds_rows, value.rows_dim or 0, rank) for dim in dims]
            valid = functools.reduce(lambda left, right: self.emit("And", [left, right]), masks)
            return self.emit("Where", [valid, value.name, self.writer.scalar(fill, value.dtype)])

        name = self.writer.emit_once(("masked", value.name, tuple(dims), repr(fill)), build)
        zero_padded = fill == 0 and len(dims) == len(times)
        return value.with_name(name, has_added_rows=value.has_added_rows or adds_rows, zero_padded=zero_padded)

    def broadcast_mask(self, size: Size, dim: int, rows_dim: int, rank: int) -> str:
        """The mask of a dim of time in a form that broadcasts with a tensor of `rank` dims.

        Returns:
            The name of a bool tensor: true up to each row's own size; of size 1 at all dims but `dim` and `rows_dim`.
        """
        mask = self.writer.mask(size)

        def build() -> str:
            transposed = self.writer.transposed(mask, (1, 0) if dim < rows_dim else (0, 1))
            return self.writer.unsqueezed(transposed, [index for index in range(rank) if index not in (dim, rows_dim)])

        return self.writer.emit_once(("mask over", mask, dim, rows_dim, rank), build)

    def neutral_extreme(self, dtype: int, *, largest: bool = True, finite: bool = False) -> float:
        """The number that a maximum never chooses (or a minimum, if not `largest`), to fill padding with.

        For a maximum it is minus infinity, for a minimum plus infinity; with `finite`, and for integers, the lowest or
        highest number of the element type.
        """
        numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
        if not np.issubdtype(numpy_type, np.floating):
            return int(np.iinfo(numpy_type).min if largest else np.iinfo(numpy_type).max)
        number = float(np.finfo(numpy_type).max) if finite else np.inf
        return -number if largest else number

    # -- broadcasting -------------------------------------------------------------------------------------------------

    def align_axes(
        self, values: Sequence[Value], *, free: int = 0, keep: int | None = None
    ) -> tuple[list[DataTensor], DataTensor]:
        """Moves the dims of operands so that ONNX broadcasts them by the original's axes.

        For example the divisor `[rows]` (added rows) of a sum `[rows, 8]` becomes `[rows, 1]`. Axes that do not match
        are refused.

        Args:
            values: The operands.
            free: The number of axes at the end of each operand that need not match, such as the two of matrices.
            keep: An axis of the result along which the operands need not match, such as that of a Concat. All operands
                then have the same number of axes.

        Returns:
            Each operand with the name of its tensor in the new form, but the groups that it had before; and the
            description of the result, which has no name yet. The result lacks the free axes, has size 1 along the axis
            `keep`, and has the element type of the first operand.
        """
        operands = [self.as_data(value) for value in values]
        rank = max(operand.rank - free for operand in operands)
        targets: list[Group] = []  # for each axis of the result, its group
        for axis in range(rank):
            target: Group = (self.size_one,)
            for operand in operands:
                operand_axis = axis - rank + operand.rank - free  # axes are aligned at the end, as by NumPy
                if operand_axis < 0 or axis == keep or self._is_one_or_empty(operand.groups[operand_axis]):
                    continue
                if self._is_one_or_empty(target):
                    target = operand.groups[operand_axis]
                elif not self.matches(target, operand.groups[operand_axis]):
                    self._refuse_pair(target, operand.groups[operand_axis])
            targets.append(target)
        sizes = [size for target in targets for size in target]
        self.refuse_if(sum(size.is_rows for size in sizes) > 1, CROSSES_ROWS)
        has_rows = any(size.is_rows for size in sizes)
        has_added_rows = any(operand.has_added_rows for operand in operands) and not has_rows
        aligned = [self._aligned(operand, targets, free, has_rows, keep) for operand in operands]
        return aligned, DataTensor("", operands[0].dtype, tuple(targets), has_added_rows)

    def expanded(self, operand: DataTensor, result: DataTensor, keep: int | None = None) -> str:
        """The name of an operand's tensor, repeated along its axes of size 1 to the shape of the result.

        Args:
            operand: The operand, as `align_axes` returns it.
            result: The result, as `align_axes` returns it.
            keep: The axis of the result along which the operand keeps its size.
        """
        operand_groups = [*[(self.size_one,)] * (result.rank - operand.rank), *operand.groups]
        # Whether the operand has rows at the result's axis of rows, because its added rows were moved there
        has_moved_rows = operand.has_added_rows and not result.has_added_rows
        # For each dim the size to repeat it to; None for one that stays
        sizes: list[Size | None] = [None if operand.has_added_rows else self.rows for _ in result.added_dims]
        for axis, (group, operand_group) in enumerate(zip(result.groups, operand_groups, strict=True)):
            stays = axis == keep or not has_size_one(operand_group)
            sizes += [None if stays or (has_moved_rows and size.is_rows) or size.fixed == 1 else size for size in group]
        return self.emit_with_shape("Expand", operand.name, sizes) if any(sizes) else operand.name

    def broadcast_node(self, kind: str, left: Value, right: Value) -> DataTensor:
        """The result of an elementwise operator on two tensors that broadcast, with the element type of the first."""
        operands, result = self.align_axes([left, right])
        return result.with_name(self.emit(kind, [operand.name for operand in operands]))

    def _refuse_pair(self, first: Group, second: Group) -> NoReturn:
        """Refuses an operator that combines two axes that do not match; the reason says in what they differ."""
        pair = f"{axis_text(first)} and {axis_text(second)}"
        self.refuse_if(
            self.axis_size(first).equals(self.axis_size(second)),
            f"combines axes that were merged of different ones, {pair}: keep rows and steps as own axes",
        )
        self.refuse(f"combines axes of different sizes, {pair}: its width is fixed, or it combines different steps")

    def _is_one_or_empty(self, group: Group) -> bool:
        """Whether an axis has size 1 at every length, or 0 at some of them and 1 at the others.

        Raises:
            LengthsRestricted: It is empty at some lengths: the mend begins again without them.
        """  # noqa: DOC502 - `require_lengths` raises it
        table = self.axis_size(group).table
        if not table.any() or (table > 1).any():
            return False
        self.require_lengths((table == 1).all(axis=0))
        return True

    def _aligned(
        self, operand: DataTensor, targets: Sequence[Group], free: int, has_rows: bool, keep: int | None
    ) -> DataTensor:
        """An operand of `align_axes`, with the name of its tensor in the form that broadcasts with the others.

        The tensor gets dims of size 1 where it lacks dims of the result, and its added rows go where the result has its
        rows. To find out which dims to squeeze, transpose and unsqueeze, each dim gets a label: `rows` for the added
        rows, None for a new dim of size 1, else a pair of its axis in the result and its index within the axis. The
        list `labels` has those of the dims as they are, `new_labels` those of the new form, in order. For the divisor
        `[rows]` beside `[rows, 8]` they are `["rows"]` and `["rows", None]`.

        Args:
            operand: The operand.
            targets: The groups of the result's axes, without the free ones.
            free: The number of axes at the end that stay as they are.
            has_rows: Whether the result has an axis with the rows.
            keep: The axis along which the operand keeps its size.
        """
        # The dims as they are
        missing = len(targets) - (operand.rank - free)  # axes that broadcasting adds in front
        labels: list[object] = ["rows"] if operand.has_added_rows else []
        for axis, group in enumerate(operand.groups, start=missing):
            labels += [(axis, index) for index in range(len(group))]
        # The dims of the new form: those of each axis of the result, then the free ones
        moves_rows = operand.has_added_rows and has_rows
        new_labels: list[object] = ["rows"] if operand.has_added_rows and not has_rows else []
        for axis, target in enumerate(targets):
            group = operand.groups[axis - missing] if axis >= missing else ()
            labels_of_axis = [(axis, index) for index in range(len(group))]
            if axis == keep:
                new_labels += labels_of_axis
            else:  # the axis fits the target dim by dim, or has size 1: then one of its dims stands for all
                remaining = iter(labels_of_axis[:1] if has_size_one(group) else labels_of_axis)
                new_labels += ["rows" if moves_rows and size.is_rows else next(remaining, None) for size in target]
        new_labels += labels[len(labels) - sum(map(len, operand.groups[operand.rank - free :])) :]
        if not operand.has_added_rows:  # ONNX adds dims in front by itself
            new_labels = [*itertools.dropwhile(lambda label: label is None, new_labels)]
        # From one form to the other
        kept = [label for label in labels if label in new_labels]
        name = self.writer.squeezed(operand.name, [dim for dim, label in enumerate(labels) if label not in new_labels])
        name = self.writer.transposed(name, [kept.index(label) for label in new_labels if label is not None])
        new_dims = [dim for dim, label in enumerate(new_labels) if label is None]
        return operand.with_name(self.writer.unsqueezed(name, new_dims))

    # -- moves within a row -------------------------------------------------------------------------------------------

    def only_dim(self, value: DataTensor, axis: int) -> tuple[int, Size]:
        """The dim that an axis of the original is, and its size.

        Raises:
            UnmendableError: The axis is merged, so it is several dims.
        """  # noqa: DOC502 - `refuse_if` raises it
        group = value.groups[axis]
        self.refuse_if(
            len(group) != 1,
            f"works along an axis that was merged of {axis_text(group)}: keep the steps in their own axis",
        )
        return value.first_dims()[axis], group[0]

    def mixed_dim(self, value: DataTensor, axis: int) -> tuple[int, Size]:
        """The dim that an axis is, and its size, for an operator that mixes the values along the axis.

        Raises:
            UnmendableError: The axis is merged, or is that of the rows.
        """  # noqa: DOC502 - the methods that it calls raise it
        dim, size = self.only_dim(value, axis)
        self.refuse_rows((size,))
        return dim, size

    def fill_padding(self, value: DataTensor, axis: int, fill: float, cause: str) -> DataTensor:
        """The tensor with `fill` at the padding of an axis of time, and `cause` noted; as it is if the axis is fixed.

        Raises:
            UnmendableError: The axis is merged, or is that of the rows.
        """  # noqa: DOC502 - `mixed_dim` raises it
        dim, size = self.mixed_dim(value, axis)
        if not size.is_time:
            return value
        self.causes.append(cause)
        return self.masked(value, [dim], fill)

    def take_per_row(self, value: DataTensor, axis: int, index: str, size: Size, *, clip: bool = True) -> DataTensor:
        """The tensor `value[row, index[row]]`: along an axis, each row picks its own positions.

        A GatherND is written, or a Gather where the tensor is the same for all rows: the result then has added rows.

        Args:
            value: The tensor.
            axis: The axis of the original.
            index: The name of `[rows, size]` int64: the positions that each row picks.
            size: The size of the axis in the result.
            clip: Whether an index outside of the axis, which only padding has, becomes its first or last position.
        """
        dim, old_size = self.only_dim(value, axis)
        if clip:
            last = self.emit("Sub", [self.writer.size_at_width(old_size), self.writer.constant([1])])
            index = self.emit("Min", [self.emit("Max", [index, self.writer.constant([0])]), last])
        # Both operators pick along the first dims: the rows and the axis go there, and afterwards back.
        rows_dim = value.rows_dim
        front = [dim] if rows_dim is None else [rows_dim, dim]
        order = [*front, *(old_dim for old_dim in range(value.dim_count) if old_dim not in front)]
        old_order = [order.index(old_dim) for old_dim in range(value.dim_count)]
        transposed = self.writer.transposed(value.name, order)
        if rows_dim is None:  # a Gather of `[old size, ...]` by `[rows, size]` is `[rows, size, ...]`
            picked = self.emit("Gather", [transposed, index], axis=0)
            old_order = [0, *(old_dim + 1 for old_dim in old_order)]
        else:
            picked = self.emit("GatherND", [transposed, self.writer.unsqueezed(index, [2])], batch_dims=1)
        has_added_rows = value.has_added_rows or rows_dim is None
        groups = value.groups_with(axis, size)
        return DataTensor(self.writer.transposed(picked, old_order), value.dtype, groups, has_added_rows)

    def strided_positions(self, start: Table, step: int, size: Size) -> str:
        """`[rows, size]` int64: for each row the positions start, start + step, ...; `start` is a table `[lengths]`."""
        positions = self.writer.positions(size)
        if step != 1:
            positions = self.emit("Mul", [positions, self.writer.constant(np.int64(step))])
        return self.emit("Add", [self.writer.per_row_column(start.astype(np.int64)), positions])

    def shape_at_width(self, groups: Iterable[Group]) -> str:
        """`[axes]` int64: the shape of the padded batch's tensor in the original's axes, from the groups of these."""
        parts = [self.axis_size_at_width(group) for group in groups]
        return self.emit("Concat", parts, axis=0) if parts else self.writer.constant(np.zeros(0, np.int64))

    def emit_with_shape(self, kind: str, name: str, sizes: Iterable[Size | None]) -> str:
        """The tensor after a Reshape or an Expand (`kind`) to these sizes at the width of the batch; None is size 1."""
        parts = [self.writer.constant([1]) if size is None else self.writer.size_at_width(size) for size in sizes]
        return self.emit(kind, [name, self.emit("Concat", parts, axis=0)])

    def axis_size_at_width(self, group: Group) -> str:
        """`[1]` int64: the size of an axis in the padded batch, which is the product of its dims' sizes."""
        sizes = map(self.writer.size_at_width, group)
        return functools.reduce(lambda left, right: self.emit("Mul", [left, right]), sizes)

    def axis_size(self, group: Group) -> Size:
        """The size of an axis of the original, which is the product of its dims' sizes; 1 without dims."""
        return Size(math.prod((size.table for size in group), start=self.size_one.table))

    def in_original_shape(self, value: DataTensor) -> str:
        """The tensor with merged axes as one dim each, by a Reshape, for an operator that takes the original's shape.

        Raises:
            UnmendableError: It has merged axes and added rows.
        """  # noqa: DOC502 - `refuse_if` raises it
        if not value.has_merged_axes:
            return value.name
        self.refuse_if(value.has_added_rows, "merges axes of a value that differs between rows only by their lengths")
        return self.emit("Reshape", [value.name, self.shape_at_width(value.groups)])

    def unsqueezed(self, value: DataTensor, axes: Sequence[int]) -> DataTensor:
        """The tensor with new axes of size 1; `axes` are their indices in the result, which are not negative."""
        old_groups = iter(value.groups)
        groups = tuple((self.size_one,) if axis in axes else next(old_groups) for axis in range(value.rank + len(axes)))
        wider = value.with_name(value.name, groups=groups)
        return wider.with_name(self.writer.unsqueezed(value.name, [wider.first_dims()[axis] for axis in sorted(axes)]))

    def transposed(self, value: DataTensor, order: Sequence[int]) -> DataTensor:
        """The tensor with its axes in this order; the dims of a merged axis stay together, added rows in front."""
        dims = [*value.added_dims, *(dim for axis in order for dim in value.dims_of(axis))]
        groups = tuple(value.groups[axis] for axis in order)
        return value.with_name(self.writer.transposed(value.name, dims), groups=groups)

    def squeezed(self, value: DataTensor, axes: Sequence[int]) -> DataTensor:
        """The tensor without these axes, which have size 1; a negative axis is counted from the end."""
        removed = [axis % value.rank for axis in axes]
        name = self.writer.squeezed(value.name, [dim for axis in removed for dim in value.dims_of(axis)])
        groups = tuple(group for axis, group in enumerate(value.groups) if axis not in removed)
        return value.with_name(name, groups=groups)

    def unmerge_first_axis(self, name: str, group: Group, rank: int) -> str:
        """The tensor with its first axis split into the dims of a group: the inverse of `in_original_shape`.

        Args:
            name: A tensor of `rank` axes, whose first one is one dim.
            group: The group of the first axis.
            rank: The number of axes.
        """
        if len(group) == 1:
            return name
        shape = [self.writer.size_at_width(size) for size in group]
        if rank > 1:
            shape.append(self.emit("Shape", [name], start=1))
        return self.emit("Reshape", [name, self.emit("Concat", shape, axis=0)])


Rule = Callable[[Mender], Value | Mapping[str, Value]]
"""Mends `Mender.node`: writes the nodes that stand for it, and returns what is known of its first output; or of several
outputs, by their names."""
RULES: Final[dict[str, Rule]] = {}  # by operator type of ONNX, the rule that mends it
_Rule = TypeVar("_Rule", bound=Rule)


def rule(*kinds: str) -> Callable[[_Rule], _Rule]:
    """A decorator that registers a function in `RULES`, as the rule for these operator types."""

    def register(function: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


FLOAT: Final = TensorProto.FLOAT
INT64: Final = TensorProto.INT64
BOOL: Final = TensorProto.BOOL
