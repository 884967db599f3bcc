"""What is known of a value while its graph is mended: its sizes, and whether its axes are rows, time, or of fixed size.

The words of all rules, by the example `x.mean(1)` with `x` of `[rows, time, 8]`:

    axis, dim       An axis of the original's tensor; a dim of the tensor in the mended graph that stands for it.
    group           The sizes of the dims that one axis consists of, mostly one. Of the original's `[rows * time, 8]`
                    (`x.reshape(-1, 8)`) the mended graph keeps `[rows, time, 8]`, so that a mask still fits: the groups
                    are `(rows, time)` and `(8,)`, and the first axis is *merged*.
    size            Of *rows* (the number of sequences in the batch), of *time* (it depends on the length, such as
                    `length // 2` after a stride of 2), or *fixed*.
    table           `[2, lengths, *shape]`: what a tensor is in the original at each length of a range, with one row and
                    with `MANY_ROWS` rows. Sizes are tables, too, and no formulas: behind a stride of 2, that of the
                    time has for the lengths 2 to 6 the table `[[1, 1, 2, 2, 3], [1, 1, 2, 2, 3]]`. Two sizes are equal
                    if their tables are; one that is the same everywhere is fixed.
    added rows      The dim 0 of a tensor that the original has once, but each row has its own, such as the divisor
                    `[rows]` of a mean. It belongs to no axis.
    own size        Of a row, along a dim of time: the size that the original has for this sequence alone. What lies
                    after it is *padding*; the row's *own steps* and *own end* lie before.
    cause           How padding would reach an operator's output without the change that its rule writes. An operator
                    with a cause is *changed*.
    refuse          To end the mend with `UnmendableError`, because an operator cannot be mended.

A *lone* sequence is a batch of one row without padding. *The node stays*: the mended graph has the same operator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lengthwise_export.mending.hiding_masks import HidingMask
from lengthwise_export.onnx_graphs.protos import attributes_of, graphs_in

FLOAT: Final = TensorProto.FLOAT
INT64: Final = TensorProto.INT64
BOOL: Final = TensorProto.BOOL

MANY_ROWS: Final = 1_000_003
"""The larger number of rows in a table: a prime above any size of a model, so a size that it divides counts rows."""

ROW_COUNTS: Final = 2
"""The length of a table's first axis: its index 0 is for one row, 1 for `MANY_ROWS`."""

CROSSES_ROWS: Final = (
    "mixes the rows of a batch, so an answer depends on what it is batched with: no mask can prevent that"
)

Table = NDArray[Any]
"""`[2, lengths, *shape]`: a tensor's numbers with 1 row and with `MANY_ROWS` rows, at each length of a range."""


@dataclass(frozen=True, eq=False)
class Size:
    """The size of one axis of the original, or of one dim of the mended graph."""

    table: Table  # `[2, lengths]` int64: the size with 1 row and with `MANY_ROWS` rows, at each length

    @cached_property
    def fixed(self) -> int | None:
        """The size, if it is the same everywhere in the table; else None."""
        return int(self.table[0, 0]) if (self.table == self.table[0, 0]).all() else None

    @property
    def is_rows(self) -> bool:
        """Whether the size is the number of rows itself, and not a multiple of it."""
        return bool((self.table[0] == 1).all() and (self.table[1] == MANY_ROWS).all())

    @property
    def is_time(self) -> bool:
        """Whether the size depends on the length of the sequence, and not on the rows."""
        return self.fixed is None and not self.depends_on_rows

    @property
    def depends_on_rows(self) -> bool:
        """Whether the size depends on the number of rows."""
        return bool((self.table[0] != self.table[1]).any())

    @property
    def by_length(self) -> Table:
        """`[lengths]` int64: the size at each length, with one row."""
        return np.asarray(self.table[0])

    def equals(self, other: Size) -> bool:
        """Whether two sizes are equal at every length and number of rows."""
        return self is other or np.array_equal(self.table, other.table)

    def divided_by(self, divisor: Size) -> Size | None:
        """The quotient of two sizes; None if there is a remainder at any length."""
        if not self.divisible_by(divisor).all():
            return None
        quotient = self.table // np.maximum(divisor.table, 1)
        # 0 / 0, where both axes are empty: the quotient at the longest length, where they are not
        return Size(np.where(divisor.table > 0, quotient, quotient[:, -1:]))

    def divisible_by(self, divisor: Size) -> NDArray[np.bool_]:
        """`[lengths]`: at which lengths the division by another size leaves no remainder; 0 / 0 leaves none."""
        remainder = self.table - divisor.table * (self.table // np.maximum(divisor.table, 1))
        return np.asarray((remainder == 0).all(axis=0))


Group = tuple[Size, ...]
"""The sizes of the dims that one axis of the original consists of."""

_ELEMENTWISE: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "Cast", "Clip", "Equal", "Less", "LessOrEqual"}
    | {"Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Exp"}
    | {"Log", "Reciprocal", "Sign", "Identity"}
)
"""Operators that compute each element from those at the same index, so they can be run on a whole table as it is."""

_AXES_INPUT: Final = {
    "Slice": 3,
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"), 1),
}
"""Operators that move elements along axes or reduce axes: the index of the input that names these axes."""

_MOVES: Final = frozenset({"Concat", "Gather", "Reshape", "Expand", *_AXES_INPUT})
"""Operators that can be run on a whole table whose first two axes were moved to its end: see `run_on_tables`."""


def run_node(node: NodeProto, inputs: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
    """The outputs of a node for these inputs, computed by ONNX's reference evaluator.

    Args:
        node: Any node without a graph inside.
        inputs: An array of any shape for each input; None for an optional one that is left out.

    Returns:
        An array for each output; None if the evaluator does not have this operator, or not in this form.
    """
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if name and array is not None}
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(deepcopy(node)).run(None, feeds)
    except Exception:  # an operator or a case that the reference does not know
        return None
    return [np.asarray(result) for result in results]


def is_pure(node: NodeProto) -> bool:
    """Whether a node draws no random numbers, and has no graph inside (a branch, or the body of a loop)."""
    has_graph = any(graph.output for graph in graphs_in(node))
    return not has_graph and not node.op_type.startswith("Random") and node.op_type not in ("Bernoulli", "Multinomial")


def constant_of(table: Table | None) -> NDArray[Any] | None:
    """The tensor `[*shape]` of a table `[2, lengths, *shape]`, if it is the same everywhere in the table.

    None if the tensor depends on the length or the rows, or if there is no table.
    """
    if table is None:
        return None
    first = np.asarray(table[0, 0])
    is_view = table.strides[:2] == (0, 0)  # one tensor, broadcast to all lengths: it may be too large to compare
    return first if is_view or (table == first).all() else None


def run_on_tables(node: NodeProto, inputs: Sequence[Table | None]) -> Table | None:
    """Runs a node for all lengths at once: the table of its output, from the tables of its inputs.

    ONNX's reference evaluator runs the node once, on whole tables whose first two axes were moved behind the others:
    `[*shape, 2, lengths]`. So broadcasting aligns the axes of tensors, and an axis counted from the front keeps its
    number.

    1. An elementwise operator runs as it is.
    2. An operator that moves elements along axes, or reduces axes, is changed before: a negative axis is decreased by
       2, and a shape gets the two axes. Its inputs after the first, such as indices, have to be constant; but those of
       a Concat are all tables.

    Args:
        node: The node, which stays as it is.
        inputs: A table for each input; None for an optional one that is left out.

    Returns:
        The table; None if the operator is neither in `_ELEMENTWISE` nor in `_MOVES`, an input that has to be constant
        depends on the length, or the evaluator cannot run the node.
    """
    kind, attributes, first = node.op_type, attributes_of(node), inputs[0] if inputs else None
    if kind not in _ELEMENTWISE | _MOVES or first is None:
        return None
    table_count = len(inputs) if kind in _ELEMENTWISE or kind == "Concat" else 1
    arrays = [None if table is None else np.moveaxis(table, (0, 1), (-2, -1)) for table in inputs[:table_count]]
    arrays += map(constant_of, inputs[table_count:])
    if any(array is None and table is not None for array, table in zip(arrays, inputs, strict=True)):
        return None  # an index or a shape that depends on the length
    # Case 2
    if kind in _AXES_INPUT:
        index = _AXES_INPUT[kind]
        arrays += [None] * (index + 1 - len(arrays))
        every = np.arange(first.ndim - 2) if kind.startswith("Reduce") else None  # for a reduction that names none
        axes = attributes.pop("axes", every if arrays[index] is None else arrays[index])
        arrays[index] = None if axes is None else _before_lengths(axes)
    elif kind in ("Reshape", "Expand"):
        arrays[1] = np.append(arrays[1], first.shape[:2])  # type: ignore[arg-type]  # these operators have a shape
    elif "axis" in attributes:
        attributes["axis"] = int(_before_lengths(attributes["axis"]))
    names = [str(index) if array is not None else "" for index, array in enumerate(arrays)]
    results = run_node(helper.make_node(kind, names, ["table"], **attributes), arrays)
    return None if results is None else np.moveaxis(results[0], (-2, -1), (0, 1))


def _before_lengths(axes: Any) -> NDArray[Any]:
    """Axes of a tensor as axes of its table, whose first two axes were moved to the end: negative ones less 2."""
    return np.where(np.asarray(axes) < 0, np.subtract(axes, 2), axes)


Attributes = Mapping[str, Any]  # of a node, by name


@dataclass(frozen=True, slots=True)
class KnownTensor:
    """A tensor that is computed from sizes and constants alone, so its numbers are known for each length."""

    name: str  # The value in the mended graph, which has the numbers of the padded batch, such as its shape
    table: Table  # `[2, lengths, *shape]`: the numbers in the original at each length

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.table.shape[2:]

    @property
    def rank(self) -> int:
        """The number of axes of the tensor."""
        return self.table.ndim - 2

    def elements(self) -> list[Table]:
        """The elements of a tensor of one axis, a table `[2, lengths]` each."""
        return [self.table[..., index] for index in range(self.shape[0])]

    @property
    def constant(self) -> NDArray[Any] | None:
        """The numbers `[*shape]`, if they depend neither on the length nor on the rows; else None."""
        return constant_of(self.table)

    @property
    def dtype(self) -> int:
        """The element type, a number of `onnx.TensorProto`."""
        return int(helper.np_dtype_to_tensor_dtype(self.table.dtype))


@dataclass(frozen=True, slots=True)
class DataTensor:
    """A tensor that depends on the values of the sequences, or that has an axis of time.

    It describes the tensor of the mended graph by the axes of the original's: an axis may be several dims, and added
    rows belong to no axis. A rule sets the fields up to `cause`, the engine those after it.
    """

    name: str  # The value in the mended graph
    dtype: int  # The element type, a number of `onnx.TensorProto`
    groups: tuple[Group, ...]  # For each axis, the sizes of the dims that it consists of, in order
    has_added_rows: bool = False  # Whether dim 0 is one of rows that the original's tensor does not have
    zero_padded: bool = False  # Whether it is known to be 0 at all padding
    # Whether it is `arange(rows)`, or its copies: only an index such as `x[rows, i]` may use it
    is_row_index: bool = False
    # Of the index of a GatherND over several axes: the index along each axis; `name` and `groups` are empty then
    index_columns: tuple[Value, ...] = ()
    cause: str = ""  # How padding would reach it without the change that its rule wrote; empty if nothing was changed
    sources: frozenset[str] = frozenset()  # Which inputs of the graph it depends on: `steps`, `lengths`, `static`
    is_steps: bool = False  # Whether it is the input with the steps, or a cast of it
    hides: HidingMask | None = None  # If it is a mask that hides steps by their values: that mask

    @property
    def rank(self) -> int:
        """The number of axes of the original's tensor."""
        return len(self.groups)

    @property
    def dim_sizes(self) -> tuple[Size, ...]:
        """The sizes of all dims in order, without the added rows."""
        return tuple(size for group in self.groups for size in group)

    @property
    def has_merged_axes(self) -> bool:
        """Whether any axis consists of several dims, or of none."""
        return any(len(group) != 1 for group in self.groups)

    @property
    def has_original_axes(self) -> bool:
        """Whether its dims are the axes of the original: none is merged, and no rows are added."""
        return not self.has_merged_axes and not self.has_added_rows

    @property
    def dim_count(self) -> int:
        """The number of dims of the mended graph's tensor, with the added rows."""
        return len(self.dim_sizes) + self.has_added_rows

    @property
    def added_dims(self) -> list[int]:
        """`[0]`, the dim of the added rows; empty if there are none."""
        return [0] if self.has_added_rows else []

    def first_dims(self) -> tuple[int, ...]:
        """For each axis of the original, its first dim."""
        return tuple(itertools.accumulate(map(len, self.groups), initial=int(self.has_added_rows)))[:-1]

    def dims_of(self, axis: int) -> range:
        """The dims that an axis of the original consists of."""
        start = self.first_dims()[axis]
        return range(start, start + len(self.groups[axis]))

    @property
    def rows_dim(self) -> int | None:
        """The dim of the rows; None if the tensor is the same for all rows."""
        if self.has_added_rows:
            return 0
        return next((dim for dim, size in enumerate(self.dim_sizes) if size.is_rows), None)

    def time_dims(self) -> dict[int, Size]:
        """The dims of time, each with its size."""
        return {dim: size for dim, size in enumerate(self.dim_sizes, start=int(self.has_added_rows)) if size.is_time}

    def groups_with(self, axis: int, *sizes: Size) -> tuple[Group, ...]:
        """The groups of this tensor, with one axis replaced by axes of these sizes, each of one dim."""
        return (*self.groups[:axis], *groups_of_one(sizes), *self.groups[axis + 1 :])

    def without_axes(self, axes: Iterable[int]) -> tuple[Group, ...]:
        """The groups of this tensor, but without some axes."""
        return tuple(group for axis, group in enumerate(self.groups) if axis not in axes)

    def with_name(self, name: str, **changes: object) -> DataTensor:
        """The description of another tensor of the mended graph: a copy with that name and with `changes` of fields."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]  # fields of its own

    def because(self, cause: str) -> DataTensor:
        """A copy with the cause of a change; if the tensor has a cause already, that stays."""
        return replace(self, cause=self.cause or cause)


Value = KnownTensor | DataTensor


def constant_in(value: Value | None) -> NDArray[Any] | None:
    """The numbers of a value, if it is a constant; else None."""
    return value.constant if isinstance(value, KnownTensor) else None


def groups_of_one(sizes: Iterable[Size]) -> tuple[Group, ...]:
    """The groups of a tensor whose axes are one dim each, of these sizes."""
    return tuple((size,) for size in sizes)


def has_size_one(group: Group) -> bool:
    """Whether an axis of the original has size 1 at every length."""
    return all(size.fixed == 1 for size in group)


def axis_text(group: Group) -> str:
    """The kinds of an axis' dims as text, such as `rows x time x 8` for a merged axis."""
    return " x ".join(
        "rows" if size.is_rows else str(size.fixed) if size.fixed is not None else "time" for size in group
    )
