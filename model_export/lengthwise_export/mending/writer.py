"""Writes the mended graph: nodes, constants, and what rows need in common: lengths, masks and positions.

A size that the original derives from its width (by a stride, a slice) is a function of the length: a linear one with an
integer division is computed from the lengths, any other becomes a table that is indexed by the length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lengthwise_export.mending.values import Size, Table
from lengthwise_export.onnx_graphs.node_writer import NodeWriter

_ROUNDED_UP: Final = 8  # how much wider than its longest sequence a batch may be at least
_MOST_STRIDE: Final = 64  # the largest divisor that is tried for a size; another function becomes a table


class Writer(NodeWriter):
    """The nodes and constants of the mended graph."""

    def __init__(
        self,
        lengths: str,
        width: tuple[str, int],
        names: Iterable[str],
        *,
        int32: bool,
        table_lengths: NDArray[np.int64],
    ) -> None:
        super().__init__(set(names), "mended_")
        self._lengths_input = lengths  # `[rows]` int32 or int64
        self._int32 = int32
        self._lengths_of_tables = table_lengths  # the lengths that tables hold, ascending without a gap
        self._width_input = width  # the input with the steps, and the index of its axis of time
        self._shared: dict[object, str] = {}

    def scratch_writer(self) -> Writer:
        """A writer for nodes that are not put into the graph, with names that the graph does not have."""
        return Writer(
            self._lengths_input,
            self._width_input,
            self._names,
            int32=self._int32,
            table_lengths=self._lengths_of_tables,
        )

    def scalar(self, number: float, dtype: int) -> str:
        """A constant without axes, of an ONNX element type."""
        return self.constant(number, dtype=helper.tensor_dtype_to_np_dtype(dtype))

    @property
    def lengths(self) -> str:
        """`[rows]` int64: the lengths."""
        if not self._int32:
            return self._lengths_input
        return self.emit_once("lengths", lambda: self.emit("Cast", [self._lengths_input], to=TensorProto.INT64))

    @property
    def width(self) -> str:
        """`[1]` int64: the width of the batch."""
        name, axis = self._width_input
        return self.emit_once("width", lambda: self.emit("Shape", [name], start=axis, end=axis + 1))

    @property
    def rows(self) -> str:
        """`[1]` int64: the number of rows."""
        return self.emit_once("rows", lambda: self.emit("Shape", [self._lengths_input]))

    def per_row(self, table: Table) -> str:
        """`[rows, *shape]`: the values of a table `[lengths, *shape]` at each row's length."""
        key = ("row", str(table.dtype), table.shape, table.tobytes())
        return self.emit_once(key, lambda: self._emit_lookup(table, self.lengths))

    def per_row_column(self, table: Table) -> str:
        """`[rows, 1]`: the values of a table `[lengths]` at each row's length."""
        return self.emit("Unsqueeze", [self.per_row(table), self.constant([1])])

    def size_at_width(self, size: Size) -> str:
        """`[1]` int64: the size of an axis in the padded batch, the largest at any length up to the width."""
        if size.fixed is not None:
            return self.constant([size.fixed])
        if size.is_rows:
            return self.rows
        largest = np.maximum.accumulate(size.by_length)
        return self.emit_once(("width", largest.tobytes()), lambda: self._emit_lookup(largest, self.width))

    def lengths_int32(self, size: Size) -> str:
        """`[rows]` int32: each row's own size, as recurrent nodes take it."""
        if self._int32 and np.array_equal(size.by_length, self._lengths_of_tables):
            return self._lengths_input
        key = ("int32", size.by_length.tobytes())
        return self.emit_once(key, lambda: self.emit("Cast", [self.per_row(size.by_length)], to=TensorProto.INT32))

    def positions(self, size: Size) -> str:
        """`[size]` int64: 0, 1, 2, ... along an axis."""

        def build() -> str:
            end = self.emit("Squeeze", [self.size_at_width(size), self.constant([0])])
            return self.emit("Range", [self.constant(np.int64(0)), end, self.constant(np.int64(1))])

        return self.emit_once(("positions", size.table[0].tobytes()), build)

    def mask(self, size: Size) -> str:
        """`[rows, size]` bool: true at each row's own positions along an axis of time."""

        def build() -> str:
            return self.emit("Less", [self.positions(size), self.per_row_column(size.by_length)])

        return self.emit_once(("mask", size.table[0].tobytes()), build)

    def emit_once(self, key: object, build: Callable[[], str]) -> str:
        """The name of what `build` emits at the first call with this key."""
        if key not in self._shared:
            self._shared[key] = build()
        return self._shared[key]

    def _emit_lookup(self, table: Table, lengths: str) -> str:
        """Emits the values of a table `[lengths, *shape]` at other lengths: by a formula, else by an index.

        Args:
            table: The values at each length of the mend's range.
            lengths: The name of `[n]` int64, the lengths to take them at.
        """
        is_whole = table.ndim == 1 and len(table) > 1 and bool((table == np.trunc(table)).all())
        line = _linear_form(table.astype(np.int64), self._lengths_of_tables) if is_whole else None
        if line is None:  # The index begins at 0: shorter lengths do not occur. A width may be rounded up.
            full = np.concatenate([table[:1]] * int(self._lengths_of_tables[0]) + [table] + [table[-1:]] * _ROUNDED_UP)
            return self.emit("Gather", [self.constant(full), lengths], axis=0)
        value = lengths
        for kind, number, neutral in zip(("Add", "Div", "Add"), line, (0, 1, 0), strict=True):
            if number != neutral:
                value = self.emit(kind, [value, self.constant([number])])
        if table.dtype != np.int64:
            value = self.emit("Cast", [value], to=int(helper.np_dtype_to_tensor_dtype(table.dtype)))
        return value


def _linear_form(table: Table, lengths: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """`(before, stride, after)` with `table == (length + before) // stride + after`; None for another function."""
    if table[-1] - table[0] == len(table) - 1:
        before = int(table[0] - lengths[0])
        return (before, 1, 0) if np.array_equal(table, lengths + before) else None
    for stride in range(2, _MOST_STRIDE + 1):
        for before in range(stride):  # never negative, so a division that truncates gives the same
            after = int(table[-1] - (lengths[-1] + before) // stride)
            if np.array_equal(table, (lengths + before) // stride + after):
                return before, stride, after
    return None
