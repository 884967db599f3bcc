"""Sizes of the original graph, as functions of the number of rows and of a sequence's own length.

A table holds a size for every length of some range, for one row and for `MANY_ROWS`. Two sizes are equal if their
tables are, a size that is the same at every length is fixed, and one that grows with the rows is the axis of the rows.
No formula is needed, and every operator on sizes is its NumPy counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper

MANY_ROWS: Final = 1_000_003
"""A prime number of rows, larger than any size of a model: what is divisible by it counts the rows."""

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
        """Whether it is the number of rows itself."""
        return bool((self.table[0] == 1).all() and (self.table[1] == MANY_ROWS).all())

    @property
    def is_time(self) -> bool:
        """Whether it depends on the length of the sequence, and not on the rows."""
        return self.fixed is None and not self.counts_rows

    @property
    def counts_rows(self) -> bool:
        """Whether it depends on the number of rows."""
        return bool((self.table[0] != self.table[1]).any())

    @property
    def alone(self) -> Table:
        """`[lengths]`: the size at each length, of one row."""
        row: Table = self.table[0]
        return row

    def same(self, other: Size) -> bool:
        """Whether two sizes are equal at every length."""
        return self is other or np.array_equal(self.table, other.table)

    def times(self, other: Size) -> Size:
        """The product."""
        return Size(self.table * other.table)

    def over(self, other: Size) -> Size | None:
        """The quotient; None if there is a remainder at any length."""
        if not self.divisible(other).all():
            return None
        some = other.table > 0
        quotient = self.table // np.where(some, other.table, 1)
        return Size(np.where(some, quotient, quotient[:, -1:]))  # nothing divided by nothing is as elsewhere

    def divisible(self, other: Size) -> NDArray[np.bool_]:
        """`[lengths]`: at which lengths there is no remainder."""
        some = other.table > 0
        whole = np.where(some, self.table % np.where(some, other.table, 1) == 0, self.table == 0)
        divisible: NDArray[np.bool_] = np.asarray(whole.all(axis=0))
        return divisible

    def __repr__(self) -> str:
        """The first sizes."""
        return f"Size({self.alone[:6].tolist()}{', rows' if self.counts_rows else ''})"


def product(sizes: Sequence[Size], count: int) -> Size:
    """The product of sizes; 1 if there are none. `count` is the number of lengths."""
    result = Size.of(1, count)
    for size in sizes:
        result = result.times(size)
    return result


def _shifted(axis: int, rank: int) -> int:
    """An axis of a tensor as an axis of its table."""
    return axis + 2 if axis >= 0 else axis + rank + 2


def _whole_division(left: Table, right: Table) -> Table:
    """ONNX's division: of integers, rounded towards zero."""
    if not np.issubdtype(left.dtype, np.integer):
        return left / right
    apart = np.where(right == 0, 1, right)
    quotient = np.abs(left) // np.abs(apart)
    result: Table = (quotient * np.sign(left) * np.sign(apart)).astype(left.dtype)
    return result


_BINARY: Final[dict[str, Callable[..., Table]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _whole_division,
    "Pow": lambda left, right: np.power(left.astype(np.float64), right).astype(left.dtype),
    **{"Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater},
    **{"GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor},
}

_UNARY: Final[dict[str, Callable[[Table], Table]]] = {
    **{"Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sqrt": np.sqrt},
    **{"Exp": np.exp, "Log": np.log, "Reciprocal": np.reciprocal, "Not": np.logical_not, "Sign": np.sign},
    "Identity": lambda table: table,
}

_REDUCED: Final[dict[str, Callable[..., Table]]] = dict(
    ReduceProd=np.prod, ReduceSum=np.sum, ReduceMax=np.max, ReduceMin=np.min
)


def aligned(tables: Sequence[Table]) -> list[Table]:
    """Tables of tensors of several ranks, with axes of size 1 in front as broadcasting puts them."""
    rank = max(table.ndim for table in tables)
    return [table.reshape(*table.shape[:2], *[1] * (rank - table.ndim), *table.shape[2:]) for table in tables]


def evaluated(kind: str, inputs: Sequence[Table | None], attributes: dict[str, Any]) -> Table | None:
    """The table of a node's output; None if the operator does not compute with sizes, or its output has no fixed shape.

    Omitted inputs are None.
    """
    given = [table for table in inputs if table is not None]
    with np.errstate(all="ignore"):
        if kind in _BINARY and len(given) == 2:
            return _BINARY[kind](*aligned(given))
        if kind in _UNARY:
            return _UNARY[kind](given[0])
        if kind == "Mod":
            left, right = aligned(given)
            return np.fmod(left, right) if attributes.get("fmod", 0) else left % np.where(right == 0, 1, right)
        if kind in ("Min", "Max"):
            smaller: Table = reduce(np.minimum if kind == "Min" else np.maximum, aligned(given))
            return smaller
        if kind == "Where":
            condition, one, other = aligned(given)
            chosen: Table = np.where(condition, one, other)
            return chosen
        if kind == "Cast":
            kept: Table = given[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
            return kept
        if kind == "Clip":
            result = given[0]
            for place, bound in ((1, np.maximum), (2, np.minimum)):
                limit = inputs[place] if len(inputs) > place else None
                result = result if limit is None else bound(*aligned([result, limit]))
            return result
        return _moved(kind, inputs, attributes)


def constant_of(table: Table | None) -> NDArray[Any] | None:
    """The tensor of a table that is the same for all lengths and rows; None if it is not."""
    if table is None:
        return None
    first: NDArray[Any] = table[0, 0]
    return first if (table == first).all() else None


_Attributes = dict[str, Any]
_Constants = Sequence[NDArray[Any] | None]
"""The other inputs of a node, where they are the same for all lengths and rows."""


def _moved(kind: str, inputs: Sequence[Table | None], attributes: _Attributes) -> Table | None:
    table, move = inputs[0], _MOVES.get(kind)
    if table is not None and kind == "Concat":
        axis = _shifted(attributes["axis"], table.ndim - 2)
        return np.concatenate([each for each in inputs if each is not None], axis)
    if table is None or move is None:
        return None
    return move(kind, table, [constant_of(each) for each in inputs[1:]], attributes)


def _gather(_: str, table: Table, extra: _Constants, attributes: _Attributes) -> Table | None:
    places, axis = extra[0], _shifted(attributes.get("axis", 0), table.ndim - 2)
    if places is None or not ((-table.shape[axis] <= places) & (places < table.shape[axis])).all():
        return None
    return np.take(table, places, axis=axis)


def _squeeze(kind: str, table: Table, extra: _Constants, attributes: _Attributes) -> Table:
    rank, axes = table.ndim - 2, _axes(extra, attributes)
    if axes is None:
        axes = [axis for axis in range(rank) if table.shape[axis + 2] == 1]
    if kind == "Squeeze":
        return np.squeeze(table, tuple(_shifted(axis, rank) for axis in axes))
    return np.expand_dims(table, tuple(_shifted(axis, rank + len(axes)) for axis in axes))


def _slice(_: str, table: Table, extra: _Constants, __: _Attributes) -> Table | None:
    given: list[Any] = [each.tolist() for each in extra if each is not None]
    if len(given) < len(extra):
        return None
    starts, ends, axes, steps = [*given, None, None][:4]
    cut = [slice(None)] * table.ndim
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        place = _shifted(axis, table.ndim - 2)
        cut[place] = slice(start, None if step < 0 and end < -table.shape[place] else end, step)
    return table[tuple(cut)]


def _reshape(_: str, table: Table, extra: _Constants, __: _Attributes) -> Table | None:
    shape = extra[0]
    return None if shape is None or (shape == 0).any() else table.reshape(*table.shape[:2], *shape.tolist())


def _expand(_: str, table: Table, extra: _Constants, __: _Attributes) -> Table | None:
    if extra[0] is None or extra[0].size >= 8:
        return None
    shape = np.broadcast_shapes(table.shape[2:], tuple(extra[0].tolist()))
    return np.broadcast_to(aligned([table, np.empty((1, 1, *shape))])[0], (*table.shape[:2], *shape))


def _reduce(kind: str, table: Table, extra: _Constants, attributes: _Attributes) -> Table:
    axes = _axes(extra, attributes)
    where = tuple(range(2, table.ndim)) if axes is None else tuple(_shifted(axis, table.ndim - 2) for axis in axes)
    reduced: Table = _REDUCED[kind](table, axis=where, keepdims=bool(attributes.get("keepdims", 1)))
    return reduced


def _axes(extra: _Constants, attributes: _Attributes) -> list[int] | None:
    """The axes of a node, which older opsets have as an attribute."""
    return attributes.get("axes") if not extra or extra[0] is None else extra[0].tolist()


_MOVES: Final[dict[str, Callable[[str, Table, _Constants, _Attributes], Table | None]]] = {
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Expand": _expand,
    **dict.fromkeys(_REDUCED, _reduce),
}
"""What moves the elements of one tensor, by operator."""
