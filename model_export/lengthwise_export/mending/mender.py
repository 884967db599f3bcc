"""What rules share: the inputs of the node that is being mended, masks, the alignment of axes, picking within a row.

The words are those of `values`. Methods that write nodes return the name, or the description, of the result.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from lengthwise_export.errors import UnmendableError
from lengthwise_export.mending.hiding_masks import HidingMask
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
    constant_in,
    groups_of_one,
)
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.protos import attributes_of

if TYPE_CHECKING:
    from lengthwise_export.mending.engine import Rule

SHORTEST_RUN: Final = 8  # successive lengths: sizes that agree, or divide one another, at fewer may do so by chance


_ADDED_ROWS: Final = (-1, 0)  # the label of the added rows in `Mender._aligned`


class LengthsRestricted(Exception):
    """The original accepts a shorter range of lengths only. Arguments: the first and the last of these lengths."""


def longest_run(accepted: NDArray[np.bool_]) -> slice | None:
    """The longest run of true values, as a slice of `accepted` `[lengths]`.

    A run shorter than `SHORTEST_RUN` may be chance: None, unless it is of all lengths.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], accepted.astype(np.int8), [0]])))
    runs = [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return slice(start, stop) if stop - start >= min(SHORTEST_RUN, len(accepted)) else None


@dataclass(frozen=True)
class Mender:
    """Mends one node: reads its inputs, and writes nodes instead of it."""

    node: NodeProto  # The node of the original
    writer: Writer  # Writes the nodes of the mended graph
    lengths: NDArray[np.int64]  # The lengths that tables are for, ascending without a gap
    axes_are_inputs: bool  # Of reductions; they are attributes in older opsets
    hiding_masks: Mapping[str, HidingMask]  # By name, the values that are masks computed from the values of the steps
    used_names: frozenset[str]  # The values that a node or an output of the graph takes
    values: dict[str, Value]  # What is known of each value of the original, by its name
    rules: Mapping[str, Rule]  # By operator type

    # -- inputs -------------------------------------------------------------------------------------------------------

    def input_value(self, index: int) -> Value | None:
        """What is known of an input of the node, by its index; None if the node does not have this input."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return self.values[name] if name else None

    def inputs(self) -> list[Value]:
        """What is known of all inputs that the node has."""
        return [self.values[name] for name in self.node.input if name]

    def data_input(self, index: int) -> DataTensor:
        """An input of the node as a `DataTensor`, also if its numbers are known; refuses an index of rows."""
        return self.as_data(self.values[self.node.input[index]])

    def constant_input(self, index: int) -> Any:
        """The array of an input that must be a constant; None if the node does not have this input."""
        value = self.input_value(index)
        constant = constant_in(value)
        if value is not None and constant is None:
            self.refuse(f"its input {self.node.input[index]} is not a constant")
        return constant

    @property
    def output_count(self) -> int:
        """The number of the node's outputs that have a name."""
        return len(list(filter(None, self.node.output)))

    def sizes_input(self, index: int, subject: str) -> KnownTensor:
        """An input whose numbers must be known, such as a shape.

        Args:
            index: The index of the input.
            subject: The first words of the reason for a refusal, such as `its shape is`.

        Raises:
            UnmendableError: The input is computed from the values of the sequences.
        """  # noqa: DOC502 - `refuse` raises it
        value = self.input_value(index)
        if not isinstance(value, KnownTensor):
            self.refuse(f"{subject} computed from the data")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute of the node; `default` if the node does not have it."""
        return attributes_of(self.node).get(name, default)

    def input_and_axis(self, default: int) -> tuple[DataTensor, int]:
        """The first input, and the axis that the attribute `axis` names in it, counted from 0.

        Args:
            default: The axis of a node without this attribute.
        """
        value = self.data_input(0)
        return value, self.attribute("axis", default) % value.rank

    def axes_of_node(self, rank: int, index: int = 1) -> list[int] | None:
        """The axes that the node names by its attribute `axes` or by an input, counted from 0.

        Args:
            rank: The number of axes of the tensor, for negative ones.
            index: The index of the input.

        Returns:
            The axes; None if the node names none.
        """
        axes = self.attribute("axes")
        axes = self.constant_input(index) if axes is None else axes
        return None if axes is None else [int(axis) % rank for axis in np.reshape(axes, -1)]

    def as_data(self, value: Value) -> DataTensor:
        """The description of a value as a tensor of data.

        1. The value is a `DataTensor`: the value itself. One that counts rows (an index of rows) is refused.
        2. It is a constant: a tensor with axes of fixed size.
        3. Its numbers depend on the length: a tensor with a further dim 0 (*added rows*, see `values`), where each row
           has the numbers for its own length. It has a cause, as the original computes them from the batch's width.
        """
        if isinstance(value, DataTensor):
            self.refuse_if(
                value.is_row_index or value.index_columns,
                "computes with the numbers of the rows: only x[rows, indices] may use them",
            )
            return value
        tensor = DataTensor(value.name, value.dtype, groups_of_one(map(self.fixed_size, value.shape)))
        if value.constant is not None:
            return tensor
        cause = "it computes with the width of the batch instead of the row's length"
        return tensor.with_name(self.writer.per_row(value.table[0]), has_added_rows=True, cause=cause)

    # -- values -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def size_one(self) -> Size:
        """The size 1."""
        return self.fixed_size(1)

    @functools.cached_property
    def rows(self) -> Size:
        """The number of rows: 1 in the first half of a table and `MANY_ROWS` in the second one."""
        return Size(np.broadcast_to(np.array([[1], [MANY_ROWS]], dtype=np.int64), (ROW_COUNTS, len(self.lengths))))

    def fixed_size(self, number: int) -> Size:
        """A size that is the same at every length."""
        return Size(np.broadcast_to(np.int64(number), (ROW_COUNTS, len(self.lengths))))

    def known(self, name: str, array: NDArray[Any]) -> KnownTensor:
        """The description of a constant; it has this name in the mended graph, and is `array` at every length."""
        return KnownTensor(name, np.broadcast_to(array, (ROW_COUNTS, len(self.lengths), *array.shape)))

    def emit_constant(self, array: NDArray[Any]) -> KnownTensor:
        """Writes a constant, by whose name later nodes can take it as an input."""
        value = self.known(self.writer.constant(array, dtype=array.dtype), array)
        self.values[value.name] = value
        return value

    def register(self, value: DataTensor) -> str:
        """Enters a value of a rule in `values` under a new name, by which later nodes can take it; returns the name."""
        name = self.writer.name("mended_value")
        self.values[name] = value
        return name

    # -- refusals -----------------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> NoReturn:
        """Ends the mend, because this node cannot be mended.

        Raises:
            UnmendableError: Always; the caller of the rule adds the name of the operator.
        """
        raise UnmendableError("", reason)

    def refuse_if(self, condition: object, reason: str) -> None:
        """Ends the mend with a reason, because this node cannot be mended, if the condition is true."""
        if condition:
            self.refuse(reason)

    def refuse_rows(self, *groups: Sequence[Size]) -> None:
        """Refuses an operator that mixes the values along these axes, if one of them is that of the rows."""
        self.refuse_if(any(size.is_rows for group in groups for size in group), CROSSES_ROWS)

    def require_lengths(self, accepted: NDArray[np.bool_]) -> None:
        """Restricts the mend to lengths that the original accepts: those where `accepted` `[lengths]` is true.

        Refuses the node if no range of these lengths is long enough (`longest_run`).

        Raises:
            LengthsRestricted: It is false at some lengths; `mend` begins again with the longest range where it is
                true.
        """
        if accepted.all():
            return
        run = longest_run(accepted)
        if run is None:
            self.refuse("accepts only some lengths: its width is fixed, or must be a multiple of a number")
        raise LengthsRestricted(int(self.lengths[run.start]), int(self.lengths[run.stop - 1]))

    def matches(self, first: Group, second: Group) -> bool:
        """Whether two axes have dims of equal sizes.

        True if they are equal at all lengths of the mend; False if they are equal in no long range (`longest_run`). In
        between, as with a table of 512 positions, the mend must be restricted to the range in which they are equal.

        Raises:
            LengthsRestricted: They are equal in a long range only; `mend` begins again with these lengths.
        """  # noqa: DOC502 - `require_lengths` raises it
        if len(first) != len(second):
            return False
        is_equal = np.all([left.table == right.table for left, right in zip(first, second, strict=True)], axis=(0, 1))
        if longest_run(is_equal) is None:
            return False
        self.require_lengths(is_equal)
        return True

    # -- nodes --------------------------------------------------------------------------------------------------------

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Writes a node with one output, and returns the output's name."""
        return self.writer.emit(kind, inputs, **attributes)

    def keep_node(
        self, value: DataTensor, further_inputs: Sequence[str] | None = None, **attributes: Any
    ) -> DataTensor:
        """Writes the node as it is, but with a tensor as its first input; returns the description of its first output.

        Args:
            value: The tensor; the output has the same axes, and is not known to be 0 at its padding.
            further_inputs: The names of the inputs after the first one; None for those of the node.
            **attributes: Attributes of the node with other values.
        """
        inputs = self.further_inputs() if further_inputs is None else further_inputs
        return value.with_name(self.copy_node([value.name, *inputs], **attributes)[0], zero_padded=False)

    def further_inputs(self) -> list[str]:
        """The names of the node's inputs after the first one."""
        return list(self.node.input)[1:]

    def copy_node(
        self, inputs: Sequence[str], *, drop: Iterable[str] = (), name_suffix: str = "", **attributes: Any
    ) -> list[str]:
        """Writes a copy of the node with other inputs and attributes.

        Args:
            inputs: The names of all inputs of the copy.
            drop: The names of attributes that the copy does not get.
            name_suffix: What is added to the names of the copy and of its outputs, where it is one of several nodes
                that stand for the node; without it they keep the node's names.
            **attributes: Attributes that the node does not have, or with other values.

        Returns:
            The names of the copy's outputs; empty for an output that the node leaves out.
        """
        return self.writer.copy(self.node, inputs, drop=drop, name_suffix=name_suffix, **attributes)

    # -- masks --------------------------------------------------------------------------------------------------------

    def masked(self, value: DataTensor, dims: Iterable[int], fill: float, cause: str = "") -> DataTensor:
        """Puts the number `fill` at the padding of a tensor, along these dims of time: `Where(mask, value, fill)`.

        The result has added rows if the tensor was the same for all rows, and the cause if there are any dims. Nothing
        is written if there are none, or if `fill` is 0 and the tensor is known to be 0 at all padding.
        """
        dims, times = sorted(dims), value.time_dims()
        value = value.because(cause if dims else "")
        if not dims or (fill == 0 and value.zero_padded):
            return value
        adds_rows = value.rows_dim is None  # the mask has a dim of rows, which broadcasting then adds in front
        rank = value.dim_count + adds_rows
        masks = [self._broadcast_mask(times[dim], dim + adds_rows, value.rows_dim or 0, rank) for dim in dims]
        valid = functools.reduce(lambda left, right: self.emit("And", [left, right]), masks)
        name = self.emit("Where", [valid, value.name, self.writer.scalar(fill, value.dtype)])
        zero_padded = fill == 0 and len(dims) == len(times)
        return value.with_name(name, has_added_rows=value.has_added_rows or adds_rows, zero_padded=zero_padded)

    def _broadcast_mask(self, size: Size, dim: int, rows_dim: int, rank: int) -> str:
        """The mask of a dim of time in a form that broadcasts with a tensor of `rank` dims.

        Returns:
            The name of a bool tensor: true up to each row's own size; of size 1 at all dims but `dim` and `rows_dim`.
        """
        mask = self.writer.transposed(self.writer.mask(size), (1, 0) if dim < rows_dim else (0, 1))
        return self.writer.unsqueezed(mask, [index for index in range(rank) if index not in (dim, rows_dim)])

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
            Each operand in the new form, whose axes are those of the result, then its free ones; and the description of
            the result, which has no name yet. The result lacks the free axes, has size 1 along the axis
            `keep`, has the element type of the first operand, and the first cause of any.
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
        cause = next(filter(None, (operand.cause for operand in operands)), "")
        return aligned, DataTensor("", operands[0].dtype, tuple(targets), has_added_rows, cause=cause)

    def expanded(self, operand: DataTensor, result: DataTensor, keep: int | None = None) -> str:
        """Repeats an operand along its axes of size 1 to the shape of the result; returns the name of the tensor.

        Args:
            operand: The operand, as `align_axes` returns it.
            result: The result, as `align_axes` returns it.
            keep: The axis of the result along which the operand keeps its size.
        """
        # For each dim, the size to repeat it to; None for a dim that stays
        sizes: list[Size | None] = [None if operand.has_added_rows else self.rows for _ in result.added_dims]
        for axis, (group, operand_group) in enumerate(zip(result.groups, operand.groups, strict=True)):
            sizes += [
                None if axis == keep or operand_size.fixed != 1 or size.fixed == 1 else size
                for size, operand_size in zip(group, operand_group, strict=True)
            ]
        return self.emit_with_shape("Expand", operand.name, sizes) if any(sizes) else operand.name

    def broadcast_node(self, kind: str, left: Value, right: Value) -> DataTensor:
        """Writes an elementwise operator on two tensors that broadcast; the result has the first one's element type."""
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
        rows. To find out which dims to squeeze, transpose and unsqueeze, each dim gets a label: its axis in the result
        and its index within the axis, `_ADDED_ROWS` for the added rows, or None for a new dim of size 1. By label,
        `sizes` has the dims as they are; `new_labels` has the labels of the new form. For the divisor `[rows]` beside
        `[rows, 8]` they are `{_ADDED_ROWS: rows}` and `[_ADDED_ROWS, None]`.

        Args:
            operand: The operand.
            targets: The groups of the result's axes, without the free ones.
            free: The number of axes at the end that stay as they are.
            has_rows: Whether the result has an axis with the rows.
            keep: The axis along which the operand keeps its size.
        """
        # The dims as they are. Broadcasting adds axes in front.
        sizes = {_ADDED_ROWS: self.rows} if operand.has_added_rows else {}
        for axis, group in enumerate(operand.groups, start=len(targets) + free - operand.rank):
            sizes |= {(axis, index): size for index, size in enumerate(group)}
        # The dims of the new form: those of each axis of the result, then the free ones
        moves_rows, keeps_rows = operand.has_added_rows and has_rows, operand.has_added_rows and not has_rows
        forms = []
        for axis, target in enumerate(targets):
            form: list[tuple[int, int] | None] = [label for label in sizes if label[0] == axis]
            if axis != keep:  # the axis fits the target dim by dim, or has size 1: then one of its dims stands for all
                has_one = all(sizes[label].fixed == 1 for label in form if label is not None)
                remaining = iter(form[:1] if has_one else form)
                form = [_ADDED_ROWS if moves_rows and size.is_rows else next(remaining, None) for size in target]
            forms.append(form)
        free_labels = [label for label in sizes if label[0] >= len(targets)]
        new_labels = [*([_ADDED_ROWS] if keeps_rows else []), *itertools.chain(*forms), *free_labels]
        if not operand.has_added_rows:  # ONNX adds dims in front by itself
            new_labels = [*itertools.dropwhile(lambda label: label is None, new_labels)]
        # From one form to the other
        kept = [label for label in sizes if label in new_labels]
        name = self.writer.squeezed(operand.name, [dim for dim, label in enumerate(sizes) if label not in new_labels])
        name = self.writer.transposed(name, [kept.index(label) for label in new_labels if label is not None])
        name = self.writer.unsqueezed(name, [dim for dim, label in enumerate(new_labels) if label is None])
        groups = [tuple(self.size_one if label is None else sizes[label] for label in form) for form in forms]
        free_groups = operand.groups[operand.rank - free :]
        return operand.with_name(name, groups=(*groups, *free_groups), has_added_rows=keeps_rows)

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
        """Puts `fill` at the padding of an axis of time, and notes the cause; along a fixed axis, nothing changes.

        Raises:
            UnmendableError: The axis is merged, or is that of the rows.
        """  # noqa: DOC502 - `mixed_dim` raises it
        dim, size = self.mixed_dim(value, axis)
        return self.masked(value, [dim] if size.is_time else [], fill, cause)

    def padded(
        self,
        value: DataTensor,
        amounts: Mapping[int, tuple[int, int]],
        *,
        fill: float | None = None,
        mode: str = "constant",
    ) -> DataTensor:
        """The tensor with elements added around its axes by a Pad: the same number of them at every length.

        Args:
            value: The tensor.
            amounts: By axis, how many are added in front of it and after it; negative ones take some away.
            fill: The number that the added elements have in the mode constant; None for 0.
            mode: The mode of the Pad.
        """
        by_dim = {self.only_dim(value, axis)[0]: numbers for axis, numbers in amounts.items()}
        pads = [by_dim.get(dim, (0, 0))[side] for side in (0, 1) for dim in range(value.dim_count)]
        inputs = [value.name, self.writer.constant(pads)]
        inputs += [] if fill is None else [self.writer.scalar(fill, value.dtype)]
        groups = tuple(
            (Size(group[0].table + sum(amounts[axis])),) if axis in amounts else group
            for axis, group in enumerate(value.groups)
        )
        return value.with_name(self.emit("Pad", inputs, mode=mode), groups=groups)

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
        return value.with_name(
            self.writer.transposed(picked, old_order),
            groups=value.groups_with(axis, size),
            has_added_rows=value.has_added_rows or rows_dim is None,
            zero_padded=False,
        )

    def strided_positions(self, start: Table, step: int, size: Size) -> str:
        """`[rows, size]` int64: for each row the positions start, start + step, ...; `start` is a table `[lengths]`."""
        positions = self.writer.positions(size)
        if step != 1:
            positions = self.emit("Mul", [positions, self.writer.constant(np.int64(step))])
        return self.emit("Add", [self.writer.per_row_column(start.astype(np.int64)), positions])

    def shape_at_width(self, groups: Iterable[Group]) -> str:
        """`[axes]` int64: the shape of a tensor with these groups in the padded batch; a merged axis is one number."""
        parts = [self.axis_size_at_width(group) for group in groups]
        return self.emit("Concat", parts, axis=0) if parts else self.writer.constant(np.zeros(0, np.int64))

    def emit_with_shape(self, kind: str, name: str, sizes: Iterable[Size | None]) -> str:
        """Writes a Reshape or an Expand (`kind`) to these sizes at the width of the batch; None stands for size 1."""
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
        """Reshapes a tensor so that each merged axis is one dim, for an operator that takes the original's shape.

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
        """Splits the first axis of a tensor into the dims of a group: the inverse of `in_original_shape`.

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
