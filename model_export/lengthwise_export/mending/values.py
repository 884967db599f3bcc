"""What is known of a value while its graph is mended: its sizes, and whether its axes are rows, time, or of fixed size.

A size of the original is a table: what it is for every length of some range, for one row and for `MANY_ROWS`. Two sizes
are equal if their tables are, a size that is the same at every length is fixed, and one that grows with the rows is the
axis of the rows. No formula is needed, and every operator on sizes is its NumPy counterpart.

A value is described by its axes in the original, run alone, and by those of the tensor in the mended graph. They
differ:

    merged axes     Of `[rows * width, F]` the mended graph keeps the axes apart, so that a mask still fits; a *group*
                    lists the axes that are one axis of the original.
    an axis of rows What depends on the length (the width of a mean) is one number in the original, and one for each row
                    in the mended graph, on an axis of rows in front that the original does not have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from lengthwise_export.onnx_graphs.protos import attributes_of, graphs_in

MANY_ROWS: Final = 1_000_003
"""A prime number of rows, larger than any size of a model: what is divisible by it counts the rows."""

ROW_COUNTS: Final = 2
"""The length of the first axis of a table: one row, and `MANY_ROWS`."""

CROSSES_ROWS: Final = (
    "mixes the rows of a batch, so an answer depends on what it is batched with: no mask can prevent that"
)

Table = NDArray[Any]
"""`[2, lengths, *shape]`: the values of a tensor for 1 and for `MANY_ROWS` rows, at each length of a range."""


class Size:
    """The size of one axis of the original graph: a table `[2, lengths]` int64."""

    __slots__ = ("fixed", "table")

    def __init__(self, table: Table) -> None:
        self.table = table
        first = table.flat[0]
        self.fixed: int | None = int(first) if (table == first).all() else None

    @classmethod
    def of(cls, number: int, count: int) -> Size:
        """A fixed size, for a number of lengths."""
        return cls(np.broadcast_to(np.int64(number), (2, count)))

    @property
    def is_rows(self) -> bool:
        """Whether the size is the number of rows itself."""
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
        """`[lengths]`: the size at each length, of one row."""
        return np.asarray(self.table[0])

    def equals(self, other: Size) -> bool:
        """Whether two sizes are equal at every length."""
        return self is other or np.array_equal(self.table, other.table)

    @classmethod
    def product(cls, sizes: Iterable[Size], count: int) -> Size:
        """The product of sizes, for a number of lengths; 1 if there are none."""
        return cls(math.prod((size.table for size in sizes), start=cls.of(1, count).table))

    def divided_by(self, other: Size) -> Size | None:
        """The quotient; None if there is a remainder at any length."""
        if not self.divisible_by(other).all():
            return None
        is_positive = other.table > 0
        quotient = self.table // np.where(is_positive, other.table, 1)
        # Where both axes are empty, the quotient is that of the longest length
        return Size(np.where(is_positive, quotient, quotient[:, -1:]))

    def divisible_by(self, other: Size) -> NDArray[np.bool_]:
        """`[lengths]`: at which lengths there is no remainder."""
        is_positive = other.table > 0
        whole = np.where(is_positive, self.table % np.where(is_positive, other.table, 1) == 0, self.table == 0)
        return np.asarray(whole.all(axis=0))


_ELEMENTWISE: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "Cast", "Clip", "Equal", "Less", "LessOrEqual"}
    | {"Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Exp"}
    | {"Log", "Reciprocal", "Sign", "Identity"}
)
"""Operators that compute a table as they compute the tensor of one length."""

_AXES_INPUT: Final = {
    "Slice": 3,
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"), 1),
}
"""Operators that move elements along axes, or reduce them, and the input that names these axes."""

_MOVES: Final = frozenset({"Concat", "Gather", "Reshape", "Expand", *_AXES_INPUT})
"""Operators that compute a table as they compute the tensor of one length, with each axis two axes further behind."""


def run_node(node: NodeProto, inputs: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
    """The outputs of a node, of any shape; None if ONNX's reference evaluator does not have this operator or form."""
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if name and array is not None}
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(deepcopy(node)).run(None, feeds)
    except Exception:  # an operator or a case that the reference does not know
        return None
    return [np.asarray(each) for each in results]


def is_pure(node: NodeProto) -> bool:
    """Whether a node gives the same for the same inputs, and has no graph inside."""
    inside = any(graph.output for graph in graphs_in(node))
    return not inside and not node.op_type.startswith("Random") and node.op_type not in ("Bernoulli", "Multinomial")


def constant_of(table: Table | None) -> NDArray[Any] | None:
    """The tensor `[*shape]` of a table `[2, lengths, *shape]` that is the same at all lengths; None if it differs."""
    if table is None:
        return None
    first = np.asarray(table[0, 0])
    is_view = table.strides[:2] == (0, 0)  # of one tensor, at all lengths: it may be large
    return first if is_view or (table == first).all() else None


def run_on_tables(node: NodeProto, inputs: Sequence[Table | None]) -> Table | None:
    """The table of a node's output; None if it does not compute with sizes, or the output has no fixed shape.

    ONNX's reference evaluator runs the node once, on the whole tables `[2, lengths, *shape]`: of an operator that moves
    elements along axes, the axes are counted two further. Its other inputs, such as indices, have to be constant.
    """
    kind, attributes, first = node.op_type, attributes_of(node), inputs[0]
    if kind in _ELEMENTWISE:
        rank = max(table.ndim for table in inputs if table is not None)
        results = run_node(node, [None if table is None else _aligned(table, rank) for table in inputs])
        return None if results is None else results[0]
    if kind not in _MOVES or first is None:
        return None
    arrays: list[NDArray[Any] | None] = [first, *(inputs[1:] if kind == "Concat" else map(constant_of, inputs[1:]))]
    if any(array is None and table is not None for array, table in zip(arrays, inputs, strict=True)):
        return None
    if kind in _AXES_INPUT:
        index = _AXES_INPUT[kind]
        arrays += [None] * (index + 1 - len(arrays))
        arrays[index] = _shifted_axes(kind, first, arrays, attributes.pop("axes", arrays[index]))
    elif kind in ("Reshape", "Expand"):
        shape = [] if arrays[1] is None else arrays[1].tolist()
        if kind == "Expand":
            arrays[0], shape = _aligned(first, len(shape) + 2), [1] * (first.ndim - 2 - len(shape)) + shape
        arrays[1] = np.array([*first.shape[:2], *shape])
    else:
        attributes["axis"] = int(_shifted(attributes.get("axis", 0)))
    names = [str(index) if array is not None else "" for index, array in enumerate(arrays)]
    results = run_node(helper.make_node(kind, names, ["table"], **attributes), arrays)
    return None if results is None else results[0]


def _shifted_axes(kind: str, table: Table, arrays: Sequence[NDArray[Any] | None], axes: Any) -> NDArray[Any] | None:
    """The axes of an operator on a table; None for a Squeeze of all axes of size 1 (the first two are longer)."""
    if axes is None and kind != "Squeeze":
        axes = np.arange(table.ndim - 2 if kind != "Slice" or arrays[1] is None else arrays[1].size)
    return None if axes is None else _shifted(np.asarray(axes))


def _shifted(axes: Any) -> Any:
    """Axes of a tensor as axes of its table, which has two more in front; negative axes stay the same."""
    return np.where(np.asarray(axes) < 0, axes, np.add(axes, 2))


def _aligned(table: Table, rank: int) -> Table:
    """A table with axes of size 1 in front of its tensor's, as broadcasting adds them to a rank of the table."""
    return table.reshape(*table.shape[:2], *[1] * (rank - table.ndim), *table.shape[2:])


Attributes = Mapping[str, Any]  # of a node, by name


@dataclass(frozen=True, slots=True)
class KnownTensor:
    """A tensor that is computed from sizes and constants alone."""

    name: str  # The value in the mended graph, computed from the width of the batch; it may be put to use as a shape
    table: Table  # `[2, lengths, *shape]`: what it is for each length of a row, run alone

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.table.shape[2:]

    def elements(self) -> list[Table]:
        """The tables `[2, lengths]` of the elements of a tensor of one axis."""
        return [self.table[..., index] for index in range(self.shape[0])]

    @property
    def is_constant(self) -> bool:
        """Whether the numbers depend neither on the length nor on the rows."""
        return constant_of(self.table) is not None

    @property
    def dtype(self) -> int:
        """The element type of the numbers in ONNX."""
        return int(onnx.helper.np_dtype_to_tensor_dtype(self.table.dtype))


@dataclass(frozen=True, slots=True)
class DataTensor:
    """A tensor with data, or with an axis of time.

    An axis is one of the original's tensor, and a dim one of the mended graph's: an axis may be several dims.
    """

    name: str  # The value in the mended graph
    dtype: int
    # For each axis of the original, the axes of the mended graph that it consists of, in order
    groups: tuple[tuple[Size, ...], ...]
    has_added_rows: bool = False  # Whether the tensor has an axis of rows in front that the original does not have
    zero_padded: bool = field(default=False, compare=False)  # Whether it is known to be 0 beyond every row's length
    is_row_index: bool = False  # Whether it holds the number of each row, to be used as an index of the rows
    index_columns: tuple[KnownTensor | DataTensor, ...] = ()  # Of an index of several axes: the index of each

    @property
    def rank(self) -> int:
        """The number of axes of the original."""
        return len(self.groups)

    @property
    def dim_sizes(self) -> tuple[Size, ...]:
        """The sizes of the tensor's dims, without that of the added rows."""
        return tuple(size for group in self.groups for size in group)

    @property
    def has_merged_axes(self) -> bool:
        """Whether any axis of the original is several axes of the tensor."""
        return any(len(group) != 1 for group in self.groups)

    def first_dims(self) -> tuple[int, ...]:
        """The first dim of each axis of the original."""
        return tuple(itertools.accumulate(map(len, self.groups), initial=int(self.has_added_rows)))[:-1]

    def dims_of(self, axis: int) -> range:
        """The dims that are one axis of the original."""
        start = self.first_dims()[axis]
        return range(start, start + len(self.groups[axis]))

    @property
    def rows_dim(self) -> int | None:
        """The dim of the rows; None if it is the same for all rows."""
        if self.has_added_rows:
            return 0
        return next((dim for dim, size in enumerate(self.dim_sizes) if size.is_rows), None)

    def time_dims(self) -> dict[int, Size]:
        """The dims of time, and their sizes."""
        return {dim: size for dim, size in enumerate(self.dim_sizes, start=int(self.has_added_rows)) if size.is_time}

    def groups_with(self, axis: int, size: Size) -> tuple[Group, ...]:
        """The groups, with `size` for an axis of the original."""
        return tuple((size,) if at == axis else group for at, group in enumerate(self.groups))

    def with_name(self, name: str, **changes: object) -> DataTensor:
        """The description of another tensor of the mended graph: as this one, but for its name and `changes`."""
        return replace(self, name=name, **changes)  # type: ignore[arg-type]  # fields of its own


Value = KnownTensor | DataTensor

Group = tuple[Size, ...]  # the axes of a tensor that are one axis of the original


def groups_of_one(sizes: Iterable[Size]) -> tuple[tuple[Size, ...], ...]:
    """Groups of one axis each."""
    return tuple((size,) for size in sizes)


def has_size_one(group: Group) -> bool:
    """Whether an axis of the original has size 1 at every length."""
    return all(size.fixed == 1 for size in group)


def axis_text(group: Group) -> str:
    """An axis in words: `rows x time x 8`."""
    return " x ".join(
        "rows" if size.is_rows else str(size.fixed) if size.fixed is not None else "time" for size in group
    )
