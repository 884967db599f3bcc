"""Series of different lengths as values of an ONNX graph: padded, `[rows, features, width]`, as float64.

Steps are `[rows, features, width]`, or a shape that broadcasts to it, and of parts `[rows, features, parts, width]`;
columns are `[rows, features, columns]`. What padding holds reaches no number: `_within` hides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray
from onnx import TensorProto

from lengthwise_export.onnx_graphs.protos import NodeWriter
from lengthwise_export.summaries.definitions import Recordings
from lengthwise_export.summaries.series import LARGEST, SPECTRUM_BITS, Numbers, Series, amplitude, on_grid, waves
from lengthwise_export.summaries.transformer import SequenceSummaries

_OPERATORS: Final[dict[Any, str]] = {
    np.add: "Add",
    np.subtract: "Sub",
    np.multiply: "Mul",
    np.divide: "Div",
    np.negative: "Neg",
    np.absolute: "Abs",
    np.floor: "Floor",
    np.sqrt: "Sqrt",
    np.minimum: "Min",
    np.maximum: "Max",
    np.greater: "Greater",
    np.less: "Less",
    np.less_equal: "LessOrEqual",
    np.equal: "Equal",
    np.bitwise_and: "And",
    np.invert: "Not",
    np.isnan: "IsNaN",
    np.where: "Where",
}
"""The operators of ONNX for NumPy's functions."""


class GraphNumbers(NDArrayOperatorsMixin):
    """A value of a graph, to which NumPy's operators and the functions of `_OPERATORS` add nodes."""

    def __init__(self, writer: NodeWriter, name: str) -> None:
        self._writer = writer
        self.name = name

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any) -> GraphNumbers:
        return self.emit(_OPERATORS[function], *inputs)

    def __array_function__(self, function: Any, types: Any, inputs: Sequence[Any], options: Any) -> GraphNumbers:
        return self.emit(_OPERATORS[function], *inputs)

    def emit(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> GraphNumbers:
        """Adds a node, and returns its first output.

        An input is a value of the graph, whole numbers (int64), or other numbers (float64).
        """
        names = [value.name if isinstance(value, GraphNumbers) else self._writer.constant(value) for value in inputs]
        return GraphNumbers(self._writer, self._writer.emit_outputs(kind, names, outputs, **attributes)[0])

    def of(self, kind: str, **attributes: Any) -> GraphNumbers:
        """The output of a node whose first and only input this is."""
        return self.emit(kind, self, **attributes)

    def cast(self, kind: int) -> GraphNumbers:
        """The value as another type."""
        return self.of("Cast", to=kind)

    def reshaped(self, *shape: int) -> GraphNumbers:
        """The value in another shape; 0 keeps an axis, -1 takes what is left."""
        return self.emit("Reshape", self, [*shape])

    def taken(self, indices: Any, axis: int) -> GraphNumbers:
        """The slices along an axis at these indices."""
        return self.emit("Gather", self, indices, axis=axis)

    def counted_up(self) -> GraphNumbers:
        """The whole numbers below this one, `[this]`; this is a single whole number."""
        return self.emit("Range", np.int64(0), self, np.int64(1))

    def summed_at(self, positions: GraphNumbers) -> GraphNumbers:
        """Steps of the same shape: at each position along the last axis, the sum of the numbers that go there."""
        indices = positions.cast(TensorProto.INT64)
        return self.emit("ScatterElements", self * 0.0, indices, self, axis=-1, reduction="add")

    @property
    def width(self) -> GraphNumbers:
        """The size of the last axis, as a single whole number."""
        return self.of("Shape", start=-1).emit("Squeeze", self.of("Shape", start=-1))


class GraphSeries(Series):
    """Series as values of a graph."""

    def __init__(self, values: Numbers, count: Numbers) -> None:
        """Takes the values, `[rows, features, width]`, and how many each series has, `[rows, features, 1]`."""
        self.values = values
        self.count = count
        self.position = values.width.counted_up().cast(TensorProto.DOUBLE)

    def _within(self, steps: Numbers, padding: float) -> Numbers:
        """Steps with a number in the place of what is beyond the end of a series."""
        return np.where(self.position < self.count, steps, padding)

    def spread(self, column: Numbers) -> Numbers:
        """A column as steps: it broadcasts."""
        return column

    def largest(self, steps: Numbers) -> Numbers:
        """A column: the largest number of each series."""
        return self.values.emit("ReduceMax", self._within(steps, -np.inf), [-1])

    def total(self, steps: Numbers) -> Numbers:
        """A column: the sum of each series."""
        return super().total(self._within(steps, 0.0))

    def _sum(self, steps: Numbers) -> Numbers:
        """A column: the sum of each series, zeros at padding."""
        return self.values.emit("ReduceSum", self._within(steps, 0.0), [-1])

    def at(self, steps: Numbers, positions: Numbers) -> Numbers:
        """The numbers of each series at these positions."""
        return self.values.emit("GatherElements", steps, positions.cast(TensorProto.INT64), axis=-1)

    def longest_run(self, flags: Numbers) -> Numbers:
        """A column: the longest run of flags. Runs are told apart by how many flags before are false."""
        flags = flags & (self.position < self.count)
        run = self.values.emit("CumSum", np.where(flags, 0.0, 1.0), np.int64(-1))
        counted: Numbers = np.where(flags, 1.0, 0.0)
        return self.largest(counted.summed_at(np.minimum(run, self.count - 1.0)))

    def ordered(self) -> GraphSeries:
        """The series with their values in ascending order; of infinity at padding."""
        size = self.values.of("Shape", start=-1)
        values = self._within(self.values, np.inf)
        return GraphSeries(values.emit("TopK", values, size, outputs=2, axis=-1, largest=0), self.count)

    def shortened(self, steps: Numbers, by: int) -> GraphSeries:
        """Series of other values that are `by` steps shorter."""
        values = np.where(self.position < self.count - float(by), steps, 0.0)
        return GraphSeries(values, np.maximum(self.count - float(by), 1.0))

    def parts(self, begins: Numbers, ends: Numbers) -> GraphSeries:
        """Parts of each series as series, `[rows, features, parts, width]`."""
        count = (ends - begins).emit("Unsqueeze", ends - begins, [-1])
        longest = count.emit("ReduceMax", count.cast(TensorProto.INT64), keepdims=0)
        places = count.emit("Unsqueeze", begins, [-1]) + longest.counted_up().cast(TensorProto.DOUBLE)
        inside = np.minimum(places, self.count.emit("Unsqueeze", self.count, [-1]) - 1.0)
        flat = self.at(self.values, inside.reshaped(0, 0, -1))
        return GraphSeries(flat.emit("Reshape", flat, inside.of("Shape")), count)

    def joined(self, columns: Numbers, chosen: NDArray[np.intp]) -> Numbers:
        """Columns of parts as columns of their series."""
        return columns.reshaped(0, 0, -1).taken(chosen, -1)

    def of_features(self, steps: Numbers, indices: NDArray[np.intp]) -> GraphSeries:
        """Series of these features' numbers."""
        return GraphSeries(steps.taken(indices, 1), self.count.taken(indices, 1))

    def spectrum(self) -> GraphSeries:
        """The absolute values of the discrete Fourier transform, as a product of matrices for each row."""
        values = self._within(self.values, 0.0)
        values = on_grid(values, self.largest(np.abs(values)), SPECTRUM_BITS)
        length = self.count.taken([0], 1)  # (rows, 1, 1)
        steps = self.values.width.counted_up()
        frequencies = (self.values.width.emit("Div", self.values.width, np.int64(2)) + np.int64(1)).counted_up()
        products = steps.emit("Unsqueeze", steps, [-1]) * frequencies  # (width, frequencies)
        indices = products.emit("Mod", products, length.cast(TensorProto.INT64))  # (rows, width, frequencies)
        parts = []
        for table in waves(self.position, length):  # (rows, 1, width)
            matrix = table.emit("GatherElements", table, indices.reshaped(0, 1, -1), axis=-1)
            parts.append(values.emit("MatMul", values, matrix.emit("Reshape", matrix, indices.of("Shape"))))
        return GraphSeries(amplitude(parts), np.floor(self.count * 0.5) + 1.0)


def recordings(writer: NodeWriter, values: str, lengths: str) -> Recordings:
    """The inputs of a graph as series: values `[rows, width, features]` with NaN for missing ones, lengths `[rows]`."""
    steps: Numbers = GraphNumbers(writer, values).cast(TensorProto.DOUBLE).of("Transpose", perm=[0, 2, 1])
    lengths_column: Numbers = GraphNumbers(writer, lengths).cast(TensorProto.DOUBLE).reshaped(-1, 1, 1)
    position = steps.width.counted_up().cast(TensorProto.DOUBLE)
    is_present = ~np.isnan(steps) & (position < lengths_column)
    steps = np.where(is_present & ~(steps == 0.0), steps, 0.0)  # no -0.0, which sorts and adds in another way
    number = np.where(is_present, 1.0, 0.0)
    count = steps.emit("ReduceSum", number, [-1])  # (rows, features, 1)
    # The present values one after the other: each goes to its rank
    rank = np.where(is_present, steps.emit("CumSum", number, np.int64(-1)) - 1.0, 0.0)
    series = GraphSeries(steps.summed_at(rank), np.maximum(count, 1.0))
    everywhere = np.maximum(lengths_column, 1.0).emit("Expand", np.maximum(lengths_column, 1.0), count.of("Shape"))
    return Recordings(series, GraphSeries(np.where(is_present, steps, series.mean), everywhere), 1.0 - number)


def summarised(writer: NodeWriter, summaries: SequenceSummaries, values: str, lengths: str) -> Numbers:
    """The table that a fitted transformer makes, `[rows, summaries]` float32, of the inputs of `recordings`."""
    columns = [column.values.reshaped(0, -1) for column in summaries.columns(recordings(writer, values, lengths))]
    table: Numbers = columns[0].emit("Concat", *columns, axis=1).taken(np.array(summaries.description["columns"]), 1)
    table = np.minimum(np.maximum(table, -LARGEST), LARGEST).cast(TensorProto.FLOAT)
    return np.where(table == np.float32(0), np.float32(0), table)  # no -0.0
