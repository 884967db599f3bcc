"""The state of one mend, and the node that is being mended: its inputs, attributes and outputs."""

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
    DataTensor,
    Group,
    KnownTensor,
    Size,
    Value,
    groups_of_one,
)
from lengthwise_export.mending.writer import Writer
from lengthwise_export.onnx_graphs.protos import AXES_ARE_INPUTS, attributes_of

_SHORTEST_RUN: Final = 8  # fewer lengths in a row at which two sizes agree are chance


class LengthsRestricted(Exception):
    """The original accepts only lengths from a first to a last one, the two arguments."""


class StepsHidden(Exception):
    """Start again with these masks made true everywhere: then the loop is a recurrent layer.

    Argument: mask name to the number that marks hidden steps.
    """


def longest_run(accepted: NDArray[np.bool_]) -> slice | None:
    """The indices of the longest run of accepted lengths; None if it is so short that it may be chance."""
    if accepted.all():
        return slice(0, len(accepted))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], accepted.astype(np.int8), [0]])))
    runs = [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return slice(start, stop) if stop - start >= _SHORTEST_RUN else None


class NodeMender:
    """Reads the inputs of the node that is being mended, and writes nodes instead of it."""

    def __init__(self, writer: Writer, lengths: NDArray[np.int64], *, opset: int) -> None:
        self.writer = writer
        self.lengths = lengths  # those that the tables hold, ascending without a gap
        self.length_count = len(lengths)
        self.axes_are_inputs = opset >= AXES_ARE_INPUTS
        self.values: dict[str, Value] = {}
        self.node = NodeProto()
        self.causes: list[str] = []  # why padding reaches the output of this node
        self.depends_on_lengths: set[str] = set()  # values that depend on an input with lengths or a mask
        self.depends_on_steps: set[str] = set()  # values that depend on the steps
        self.unchanged_steps: set[str] = set()  # the steps, and casts of them: token ids, which padding has too
        self.used_names: set[str] = set()  # values that a node or an output of the graph takes
        self.hiding_masks: dict[str, HidingMask] = {}  # masks that the values of the steps decide
        self.always_true_masks: set[str] = set()  # masks that are true at every step of a lone sequence
        self.size_one = self.fixed_size(1)
        self.rows = Size(np.broadcast_to(np.array([[1], [MANY_ROWS]], dtype=np.int64), (2, self.length_count)))

    # -- values -------------------------------------------------------------------------------------------------------

    def input_value(self, index: int) -> Value | None:
        """An input of the node; None if it is not given."""
        name = self.node.input[index] if index < len(self.node.input) else ""
        return self.values[name] if name else None

    def required_input(self, index: int) -> Value:
        """An input of the node that it must have."""
        return self.values[self.node.input[index]]

    def data_input(self, index: int) -> DataTensor:
        """An input of the node as a tensor of data; the node must have it."""
        return self.as_data(self.required_input(index))

    def movable_input(self, index: int) -> DataTensor:
        """An input for an operator that only moves elements: as `ragged`, or the numbers of the rows."""
        value = self.input_value(index)
        return value if isinstance(value, DataTensor) and value.is_row_index else self.data_input(index)

    def constant_input(self, index: int) -> NDArray[Any] | None:
        """The constant, of any shape, that an input is; None if the node has no such input."""
        value = self.input_value(index)
        if value is None:
            return None
        if not isinstance(value, KnownTensor) or not value.is_constant:
            self.refuse(f"its input {self.node.input[index]} is not a constant")
        return np.asarray(value.table[0, 0])

    def required_constant(self, index: int) -> NDArray[Any]:
        """The constant, of any shape, that an input is; the node must have it."""
        array = self.constant_input(index)
        assert array is not None
        return array

    def sizes_input(self, index: int, subject: str) -> KnownTensor:
        """An input that must be computed from sizes and constants; `subject` is what a refusal says of it."""
        value = self.input_value(index)
        if not isinstance(value, KnownTensor):
            self.refuse(f"{subject} computed from the data")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return attributes_of(self.node).get(name, default)

    def input_and_axis(self, default: int) -> tuple[DataTensor, int]:
        """The first input as a tensor of data, and the axis that the attribute `axis` names, counted from 0."""
        value = self.data_input(0)
        return value, self.attribute("axis", default) % value.rank

    def axes_of_node(self, rank: int, index: int = 1) -> list[int] | None:
        """The axes of the node, from its attribute or its input, counted from 0; None if it names none."""
        axes = self.attribute("axes")
        if axes is None:
            array = self.constant_input(index)
            axes = None if array is None else array.reshape(-1).tolist()
        return None if axes is None else [int(axis) % rank for axis in axes]

    def set_output(self, value: Value, index: int = 0) -> None:
        """Sets an output of the node."""
        self.values[self.node.output[index]] = value

    def constant_tensor(self, name: str, array: NDArray[Any]) -> KnownTensor:
        """A constant of this name: `array`, of any shape, at each length."""
        return KnownTensor(name, np.broadcast_to(array, (2, self.length_count, *array.shape)))

    def register(self, value: DataTensor) -> str:
        """A new name under which the rules find a value."""
        name = self.writer.name("mended_value")
        self.values[name] = value
        return name

    def fixed_size(self, number: int) -> Size:
        """A fixed size."""
        return Size.of(number, self.length_count)

    def as_data(self, value: Value) -> DataTensor:
        """A value as a tensor of data; numbers that depend on the length get an axis of rows."""
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
        """Ends the mend.

        Raises:
            UnmendableError: Always; the caller adds the operator.
        """
        raise UnmendableError("", reason)

    def refuse_if(self, condition: object, reason: str) -> None:
        """Ends the mend if a precondition of a rule does not hold."""
        if condition:
            self.refuse(reason)

    def refuse_rows(self, *groups: Sequence[Size]) -> None:
        """Refuses an operator that mixes the values along axes, if one of the axes is that of the rows."""
        self.refuse_if(any(size.is_rows for group in groups for size in group), CROSSES_ROWS)

    def require_lengths(self, accepted: NDArray[np.bool_]) -> None:
        """Restricts the mend to lengths where `accepted` `[lengths]` is true: the original raises at the others.

        Raises:
            LengthsRestricted: Some lengths are left out; the caller begins again with the others.
        """
        if accepted.all():
            return
        run = longest_run(accepted)
        if run is None:
            self.refuse("accepts only some lengths: its width is fixed, or must be a multiple of a number")
        raise LengthsRestricted(int(self.lengths[run.start]), int(self.lengths[run.stop - 1]))

    def matches(self, one: Group, other: Group) -> bool:
        """Whether two axes have the same sizes, at all lengths or at least in one long range of them.

        Lengths outside of that range are left out, as `require` does: of a table of 512 positions, those above 512.

        Raises:
            LengthsRestricted: Some lengths are left out; the caller begins again with the others.
        """  # noqa: DOC502 - `require` raises it
        if len(one) != len(other):
            return False
        equal = np.all([first.table == second.table for first, second in zip(one, other, strict=True)], axis=(0, 1))
        if longest_run(equal) is None:
            return False
        self.require_lengths(equal)
        return True

    # -- nodes --------------------------------------------------------------------------------------------------------

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node with one output."""
        return self.writer.emit(kind, inputs, **attributes)

    def keep_node(
        self, value: DataTensor, *, zero_padded: bool = False, dtype: int | None = None, **attributes: Any
    ) -> None:
        """Copies the node with another first input. Its output has the axes of that input."""
        (name,) = (each for each in self.copy_node([value.name, *self.further_inputs()], **attributes) if each)
        self.set_output(value.with_name(name, zero_padded=zero_padded, dtype=value.dtype if dtype is None else dtype))

    def further_inputs(self) -> list[str]:
        """The names of the node's inputs after the first one."""
        return list(self.node.input)[1:]

    def copy_node(
        self, inputs: Sequence[str], *, drop: Iterable[str] = (), name_suffix: str = "", **attributes: Any
    ) -> list[str]:
        """Adds the node with other inputs and attributes, and returns the names of its outputs; see `NodeWriter`."""
        return self.writer.copy(self.node, inputs, drop=drop, name_suffix=name_suffix, **attributes)
