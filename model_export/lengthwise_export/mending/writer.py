"""Writes the nodes of the mended graph: what many rules need of the rows, such as lengths, masks and positions.

Here, a `Table` has no axis of row counts: `[lengths, *shape]`, the values of the original with one row. If a size is a
linear function with an integer division, such as `(length + 1) // 2 - 1`, it is computed from the lengths; else the
table becomes a constant, indexed by the length. Every method that writes nodes returns the name of the result. A node
that was written before, of the same operator with the same inputs, is not written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

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
        self._emitted: dict[tuple[str, ...], str] = {}  # by operator, inputs and attributes: the output

    def scratch_writer(self) -> Writer:
        """A new writer whose nodes are not put into the graph; its new names differ from the graph's names."""
        return Writer(
            self._lengths_input,
            self._steps_input,
            self._time_axis,
            self._names,
            has_int32_lengths=self._has_int32_lengths,
            table_lengths=self._table_lengths,
        )

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node of the operator `kind`, unless an equal one was added before; returns the name of its output."""
        key = (kind, *inputs, repr(attributes))
        if key not in self._emitted:
            self._emitted[key] = super().emit(kind, inputs, **attributes)
        return self._emitted[key]

    def scalar(self, number: float, dtype: int) -> str:
        """A constant without axes, of an element type (a number of `onnx.TensorProto`)."""
        return self.constant(number, dtype=helper.tensor_dtype_to_np_dtype(dtype))

    @property
    def lengths(self) -> str:
        """`[rows]` int64: the lengths of the sequences."""
        return self._lengths_input if not self._has_int32_lengths else self.cast(self._lengths_input, TensorProto.INT64)

    def cast(self, name: str, dtype: int) -> str:
        """A tensor in another element type (a number of `onnx.TensorProto`)."""
        return self.emit("Cast", [name], to=dtype)

    @property
    def width(self) -> str:
        """`[1]` int64: the width of the batch."""
        return self.emit("Shape", [self._steps_input], start=self._time_axis, end=self._time_axis + 1)

    @property
    def rows(self) -> str:
        """`[1]` int64: the number of rows."""
        return self.emit("Shape", [self._lengths_input])

    def per_row(self, table: Table) -> str:
        """`[rows, *shape]`: for each row, the values of a table `[lengths, *shape]` at its length."""
        return self._emit_lookup(table, self.lengths)

    def per_row_column(self, table: Table) -> str:
        """`[rows, 1]`: for each row, the value of a table `[lengths]` at its length."""
        return self.unsqueezed(self.per_row(table), [1])

    def size_at_width(self, size: Size) -> str:
        """`[1]` int64: the size of a dim in the padded batch: its largest own size at any length up to the width."""
        if size.fixed is not None:
            return self.constant([size.fixed])
        return self.rows if size.is_rows else self._emit_lookup(np.maximum.accumulate(size.by_length), self.width)

    def sizes_int32(self, size: Size) -> str:
        """`[rows]` int32: each row's own size, as the input `sequence_lens` of recurrent operators."""
        if self._has_int32_lengths and np.array_equal(size.by_length, self._table_lengths):
            return self._lengths_input
        return self.cast(self.per_row(size.by_length), TensorProto.INT32)

    def positions(self, size: Size) -> str:
        """`[size]` int64: 0, 1, 2, ... along a dim of the padded batch."""
        end = self.squeezed(self.size_at_width(size), [0])
        return self.emit("Range", [self.constant(np.int64(0)), end, self.constant(np.int64(1))])

    def mask(self, size: Size) -> str:
        """`[rows, size]` bool: true before each row's own size along a dim of time, so not at its padding."""
        return self.emit("Less", [self.positions(size), self.per_row_column(size.by_length)])

    def _emit_lookup(self, table: Table, lengths: str) -> str:
        """Writes nodes that take the values of a table at some lengths.

        They compute `(length + before) // stride + after`, if the table is such a function, and are a Gather if not.

        Args:
            table: `[lengths, *shape]`.
            lengths: The name of `[n]` int64, such as the lengths of the rows, or the width.

        Returns:
            The name of `[n, *shape]`.
        """
        is_integral = table.ndim == 1 and len(table) > 1 and bool((table == np.trunc(table)).all())
        linear = _linear_function(table.astype(np.int64), self._table_lengths) if is_integral else None
        if linear is None:
            # The index of the Gather is the length itself. So entries are added in front, for lengths from 0 on
            # that do not occur; and at the end, for a width that was rounded up.
            shorter, longer = [table[:1]] * int(self._table_lengths[0]), [table[-1:]] * _ROUNDED_UP
            return self.emit("Gather", [self.constant(np.concatenate([*shorter, table, *longer])), lengths], axis=0)
        value = lengths
        for kind, number, neutral in zip(("Add", "Div", "Add"), linear, (0, 1, 0), strict=True):
            if number != neutral:
                value = self.emit(kind, [value, self.constant([number])])
        return value if table.dtype == np.int64 else self.cast(value, helper.np_dtype_to_tensor_dtype(table.dtype))


def _linear_function(table: Table, lengths: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """The numbers of a linear function with an integer division that gives a table `[lengths]`.

    Returns:
        `(before, stride, after)` with `table == (length + before) // stride + after`; None if there is none.
    """
    rise, run = table[-1] - table[0], lengths[-1] - lengths[0]
    # The strides with which the function rises as the table does, from the first length to the last one
    strides = [stride for stride in range(1, _MAX_STRIDE + 1) if abs(rise * stride - run) < stride]
    for stride in strides:
        for before in range(stride):  # `before` is not negative: so ONNX's Div, which truncates, gives the same as //
            after = int(table[-1] - (lengths[-1] + before) // stride)
            if np.array_equal(table, (lengths + before) // stride + after):
                return before, stride, after
    return None
