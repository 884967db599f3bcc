"""Writes the nodes of the mended graph: what many rules need of the rows, such as lengths, masks and positions.

A `Table` has the values of the original for each length that is followed. Here it has no axis of row counts:
`[lengths, *shape]`. A row's *own size* along a dim is the size that the original has there for this sequence alone;
what lies after it in the batch is padding. If the own size is a linear function with an integer division, such as
`(length + 1) // 2 - 1`, it is computed from the lengths; else the table becomes a constant, indexed by the length.
Every method that writes nodes returns the name of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lengthwise_export.mending.values import Size, Table
from lengthwise_export.onnx_graphs.protos import NodeWriter

_ROUNDED_UP: Final = 8  # steps: a batch may be wider than its longest sequence, because widths are rounded up
_MAX_STRIDE: Final = 64  # the largest divisor that is tried for a linear function


class Writer(NodeWriter):
    """The nodes and constants of the mended graph."""

    def __init__(
        self,
        lengths_input: str,
        steps_input: str,
        time_axis: int,
        names: Iterable[str],
        *,
        has_int32_lengths: bool,
        table_lengths: NDArray[np.int64],
    ) -> None:
        """Makes a writer for one graph.

        Args:
            lengths_input: The graph's input with the lengths, `[rows]`.
            steps_input: The input with the steps.
            time_axis: The index of its axis of time.
            names: The names that the graph has already.
            has_int32_lengths: Whether the lengths are int32; else they are int64.
            table_lengths: The lengths that tables are for, ascending without a gap.
        """
        super().__init__(set(names), "mended_")
        self._lengths_input, self._has_int32_lengths = lengths_input, has_int32_lengths
        self._steps_input, self._time_axis = steps_input, time_axis
        self._table_lengths = table_lengths
        self._names_of_results: dict[object, str] = {}  # by the key of `emit_once`

    def scratch_writer(self) -> Writer:
        """A new writer for the same graph, whose nodes are not put into the graph; its names are free there, too."""
        return Writer(
            self._lengths_input,
            self._steps_input,
            self._time_axis,
            self._names,
            has_int32_lengths=self._has_int32_lengths,
            table_lengths=self._table_lengths,
        )

    def scalar(self, number: float, dtype: int) -> str:
        """A constant without axes, of an element type (a number of `onnx.TensorProto`)."""
        return self.constant(number, dtype=helper.tensor_dtype_to_np_dtype(dtype))

    @property
    def lengths(self) -> str:
        """`[rows]` int64: the lengths of the sequences."""
        if not self._has_int32_lengths:
            return self._lengths_input
        return self.emit_once("lengths", lambda: self.emit("Cast", [self._lengths_input], to=TensorProto.INT64))

    @property
    def width(self) -> str:
        """`[1]` int64: the width of the batch."""
        axis = self._time_axis
        return self.emit_once("width", lambda: self.emit("Shape", [self._steps_input], start=axis, end=axis + 1))

    @property
    def rows(self) -> str:
        """`[1]` int64: the number of rows."""
        return self.emit_once("rows", lambda: self.emit("Shape", [self._lengths_input]))

    def per_row(self, table: Table) -> str:
        """`[rows, *shape]`: for each row, the values of a table `[lengths, *shape]` at its length."""
        key = ("row", str(table.dtype), table.shape, table.tobytes())
        return self.emit_once(key, lambda: self._emit_lookup(table, self.lengths))

    def per_row_column(self, table: Table) -> str:
        """`[rows, 1]`: for each row, the value of a table `[lengths]` at its length."""
        return self.emit("Unsqueeze", [self.per_row(table), self.constant([1])])

    def size_at_width(self, size: Size) -> str:
        """`[1]` int64: the size of a dim in the padded batch: its largest own size at any length up to the width."""
        if size.fixed is not None:
            return self.constant([size.fixed])
        if size.is_rows:
            return self.rows
        largest = np.maximum.accumulate(size.by_length)
        return self.emit_once(("width", largest.tobytes()), lambda: self._emit_lookup(largest, self.width))

    def sizes_int32(self, size: Size) -> str:
        """`[rows]` int32: each row's own size, as the input `sequence_lens` of recurrent operators."""
        if self._has_int32_lengths and np.array_equal(size.by_length, self._table_lengths):
            return self._lengths_input
        key = ("int32", size.by_length.tobytes())
        return self.emit_once(key, lambda: self.emit("Cast", [self.per_row(size.by_length)], to=TensorProto.INT32))

    def positions(self, size: Size) -> str:
        """`[size]` int64: 0, 1, 2, ... along a dim of the padded batch."""

        def build() -> str:
            end = self.emit("Squeeze", [self.size_at_width(size), self.constant([0])])
            return self.emit("Range", [self.constant(np.int64(0)), end, self.constant(np.int64(1))])

        return self.emit_once(("positions", size.table[0].tobytes()), build)

    def mask(self, size: Size) -> str:
        """`[rows, size]` bool: true before each row's own size along a dim of time, so not at its padding."""

        def build() -> str:
            return self.emit("Less", [self.positions(size), self.per_row_column(size.by_length)])

        return self.emit_once(("mask", size.table[0].tobytes()), build)

    def emit_once(self, key: object, build: Callable[[], str]) -> str:
        """The name of a result that is written once: by `build`, at the first call with this key."""
        if key not in self._names_of_results:
            self._names_of_results[key] = build()
        return self._names_of_results[key]

    def _emit_lookup(self, table: Table, lengths: str) -> str:
        """Writes nodes that take the values of a table at some lengths: by a linear function, else by a Gather.

        Args:
            table: `[lengths, *shape]`.
            lengths: The name of `[n]` int64, such as the lengths of the rows, or the width.

        Returns:
            The name of `[n, *shape]`.
        """
        is_integral = table.ndim == 1 and len(table) > 1 and bool((table == np.trunc(table)).all())
        linear = _linear_function(table.astype(np.int64), self._table_lengths) if is_integral else None
        if linear is None:
            # The index is the length, from 0: entries in front for shorter lengths, which do not occur, and after for
            # a width that was rounded up.
            shorter, longer = [table[:1]] * int(self._table_lengths[0]), [table[-1:]] * _ROUNDED_UP
            return self.emit("Gather", [self.constant(np.concatenate([*shorter, table, *longer])), lengths], axis=0)
        value = lengths
        for kind, number, neutral in zip(("Add", "Div", "Add"), linear, (0, 1, 0), strict=True):
            if number != neutral:
                value = self.emit(kind, [value, self.constant([number])])
        if table.dtype != np.int64:
            value = self.emit("Cast", [value], to=int(helper.np_dtype_to_tensor_dtype(table.dtype)))
        return value


def _linear_function(table: Table, lengths: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """The numbers of a linear function with an integer division that gives a table `[lengths]`.

    Returns:
        `(before, stride, after)` with `table == (length + before) // stride + after`; None if there is none.
    """
    for stride in range(1, _MAX_STRIDE + 1):
        for before in range(stride):  # never negative, so that ONNX's Div, which truncates, gives the same as //
            after = int(table[-1] - (lengths[-1] + before) // stride)
            if np.array_equal(table, (lengths + before) // stride + after):
                return before, stride, after
    return None
