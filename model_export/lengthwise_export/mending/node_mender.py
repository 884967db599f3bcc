"""The node that is being mended: how a rule reads its inputs and attributes, writes nodes for it, and sets its outputs.

An *axis* is one of the original's tensor, a *dim* one of the mended graph's; the *group* of an axis has the sizes of
the dims that it consists of. A `KnownTensor` has numbers that are known for each length: a constant, or computed from
sizes. A `DataTensor` depends on the sequences. *Added rows* are dim 0 of a tensor that the original has once and each
row has its own. The tables of a mend are for a range of lengths; where the original raises at some of these lengths,
the mend begins again with a shorter range (`LengthsRestricted`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

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
    Value,
    groups_of_one,
)
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.protos import AXES_ARE_INPUTS, attributes_of

SHORTEST_RUN: Final = 8  # successive lengths: if sizes agree, or one divides another, at fewer, this is chance


class LengthsRestricted(Exception):
    """The original accepts a shorter range of lengths only. Arguments: the first and the last of these lengths."""


class StepsHidden(Exception):
    """A loop is a recurrent layer if some masks are made true everywhere: `mend` begins again with these masks.

    Argument: by the name of each mask, the number that marks the steps that it hides.
    """


def longest_run(accepted: NDArray[np.bool_]) -> slice | None:
    """The longest run of true values, as a slice of `accepted` `[lengths]`.

    A run shorter than `SHORTEST_RUN` may be chance: None, unless it is of all lengths.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], accepted.astype(np.int8), [0]])))
    runs = [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return slice(start, stop) if stop - start >= min(SHORTEST_RUN, len(accepted)) else None


class NodeMender:
    """Reads the inputs of the node that is being mended, and writes nodes instead of it."""

    def __init__(self, writer: Writer, lengths: NDArray[np.int64], *, opset: int) -> None:
        """Begins a mend without any values.

        Args:
            writer: Writes the nodes of the mended graph.
            lengths: The lengths that tables are for, ascending without a gap.
            opset: The version of ONNX's operators in the graph.
        """
        self.writer = writer
        self.lengths = lengths
        self.length_count = len(lengths)
        self.axes_are_inputs = opset >= AXES_ARE_INPUTS  # of reductions; attributes in older opsets
        self.values: dict[str, Value] = {}  # what is known of each value of the original, by its name
        self.node = NodeProto()  # the node of the original that is being mended
        self.causes: list[str] = []  # texts: how padding would reach the output of this node without a change
        # Names of values of the original:
        self.depends_on_lengths: set[str] = set()  # values that depend on an input with lengths or a mask
        self.depends_on_steps: set[str] = set()  # values that depend on the steps
        self.unchanged_steps: set[str] = set()  # the input with the steps, and casts of it
        self.used_names: set[str] = set()  # values that a node or an output of the graph takes
        self.hiding_masks: dict[str, HidingMask] = {}  # masks that the values of the steps decide
        self.always_true_masks: set[str] = set()  # masks that are true at every step of a lone sequence
        # Sizes that many rules need. That of rows is 1 in the first half of a table and `MANY_ROWS` in the second one.
        self.size_one = self.fixed_size(1)
        self.rows = Size(np.broadcast_to(np.array([[1], [MANY_ROWS]], dtype=np.int64), (2, self.length_count)))

    # -- values -------------------------------------------------------------------------------------------------------

    def input_value(self, index: int) -> Value | None:
        """What is known of an input of the node, by its index; None if the node does not have this input."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return self.values[name] if name else None

    def required_input(self, index: int) -> Value:
        """What is known of an input of the node, which always has this input."""
        return self.values[self.node.input[index]]

    def data_input(self, index: int) -> DataTensor:
        """An input of the node as a `DataTensor`, also if its numbers are known; refuses an index of rows."""
        return self.as_data(self.required_input(index))

    def movable_input(self, index: int) -> DataTensor:
        """An input of a node that only moves or copies elements: as `data_input`, but it may be an index of rows."""
        value = self.input_value(index)
        return value if isinstance(value, DataTensor) and value.is_row_index else self.data_input(index)

    def constant_input(self, index: int) -> NDArray[Any] | None:
        """The array of an input that must be a constant; None if the node does not have this input."""
        return None if self.input_value(index) is None else self.required_constant(index)

    def required_constant(self, index: int) -> NDArray[Any]:
        """The array of an input that must be a constant, and that the node always has."""
        value = self.required_input(index)
        if not isinstance(value, KnownTensor) or not value.is_constant:
            self.refuse(f"its input {self.node.input[index]} is not a constant")
        return np.asarray(value.table[0, 0])

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
        if axes is None and (array := self.constant_input(index)) is not None:
            axes = array.reshape(-1).tolist()
        return None if axes is None else [int(axis) % rank for axis in axes]

    def constant_tensor(self, name: str, array: NDArray[Any]) -> KnownTensor:
        """The description of a constant; it has this name in the mended graph, and is `array` at every length."""
        return KnownTensor(name, np.broadcast_to(array, (2, self.length_count, *array.shape)))

    def emit_constant(self, array: NDArray[Any]) -> str:
        """Writes a constant by whose name later nodes can take it as an input; returns the name."""
        name = self.writer.constant(array, dtype=array.dtype)
        self.values[name] = self.constant_tensor(name, array)
        return name

    def register(self, value: DataTensor) -> str:
        """Gives a value that a rule made a new name, by which later nodes can take it as an input; returns the name."""
        name = self.writer.name("mended_value")
        self.values[name] = value
        return name

    def fixed_size(self, number: int) -> Size:
        """A size that is the same at every length."""
        return Size(np.broadcast_to(np.int64(number), (ROW_COUNTS, self.length_count)))

    def as_data(self, value: Value) -> DataTensor:
        """The description of a value as a tensor of data.

        1. The value is a `DataTensor`: the value itself. One that counts rows (an index of rows) is refused.
        2. It is a constant: a tensor with axes of fixed size.
        3. Its numbers depend on the length: a tensor with added rows, each with the numbers for its own length. This is
           noted as a cause, because the original computes them from the width of the batch.
        """
        if isinstance(value, DataTensor):
            self.refuse_if(
                value.is_row_index or value.index_columns,
                "computes with the numbers of the rows: only x[rows, indices] may use them",
            )
            return value
        groups = groups_of_one([self.fixed_size(size) for size in value.shape])
        if value.is_constant:
            return DataTensor(value.name, value.dtype, groups)
        self.causes.append("it computes with the width of the batch instead of the row's length")
        return DataTensor(self.writer.per_row(value.table[0]), value.dtype, groups, has_added_rows=True)

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
        """Says that the original accepts only lengths where `accepted` `[lengths]` is true.

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
        """Whether two axes have dims of equal sizes: True at all lengths of the mend, False if at nearly none.

        Where they are equal in one long range of lengths only, as with a table of 512 positions, the mend must be
        restricted to that range.

        Raises:
            LengthsRestricted: They are equal in such a range; `mend` begins again with these lengths.
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
        self, value: DataTensor, *, zero_padded: bool = False, dtype: int | None = None, **attributes: Any
    ) -> DataTensor:
        """Writes the node as it is, but with a tensor as its first input; returns the description of its first output.

        Args:
            value: The tensor; the output has the same axes.
            zero_padded: Whether the output is 0 at all padding.
            dtype: The element type of the output; None for that of the tensor.
            **attributes: Attributes of the node with other values.
        """
        name = self.copy_node([value.name, *self.further_inputs()], **attributes)[0]
        return value.with_name(name, zero_padded=zero_padded, dtype=value.dtype if dtype is None else dtype)

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
