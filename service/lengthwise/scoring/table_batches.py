"""A batch of an engine, which keeps its type: pandas, Arrow, or a dict of arrays, imported only if one comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.datasets import arrays
from lengthwise.decoding.calls import Item
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring.answer_columns import AnswerColumn, Rows
from lengthwise.wrong_values import nearest

_MOST_LISTED: Final = 20  # columns in a message


class TableBatch(Protocol):
    """A batch with named columns."""

    names: list[str]

    def items(self, column: str, manifest: Manifest) -> list[Item | str]:
        """The sequence of each row, or why the model rejects it."""

    def cell(self, column: str, row: int) -> Any:
        """One value, for a message."""

    def answered(self, leave_out: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> Any:
        """The batch with the answers, in its own type, without the column `leave_out`."""


def table_batch(batch: Any) -> TableBatch:
    """A batch as a table."""
    package = type(batch).__module__.partition(".")[0]
    if package == "pyarrow":
        from lengthwise.scoring.arrow_batches import ArrowBatch, is_table

        if is_table(batch):
            return ArrowBatch(batch)
    if isinstance(batch, Mapping):
        return ArraysBatch(batch)
    if package == "pandas" and hasattr(batch, "columns"):
        return FrameBatch(batch)
    raise ConfigurationError(
        "a batch is a pandas DataFrame, an Arrow Table or RecordBatch, or a dict of arrays; "
        f"this is a {type(batch).__name__}. For a list of sequences there is Scorer.predictions"
    )


def check_column(names: Sequence[str], column: str) -> None:
    """Checks that a table has its column of sequences, and once."""
    if names.count(column) == 1:
        return
    if column in names:
        raise ConfigurationError(f"the batch has {names.count(column)} columns {column!r}")
    listed = ", ".join(map(repr, names[:_MOST_LISTED])) or "none"
    raise ConfigurationError(
        f"the batch has no column {column!r}{nearest(column, names)}; its columns are {listed}. "
        "Scorer(..., steps='NAME') names the column that has the sequences"
    )


class FrameBatch:
    """A pandas DataFrame."""

    def __init__(self, frame: Any) -> None:
        self.names: list[str] = [str(name) for name in frame.columns]
        self._frame = frame

    def items(self, column: str, manifest: Manifest) -> list[Item | str]:
        """The sequence of each row, or why the model rejects it."""
        return arrays.items_or_reasons(self._frame[column].tolist(), manifest, ask=False)

    def cell(self, column: str, row: int) -> Any:
        """One value."""
        return self._frame[column].iloc[row]

    def answered(self, leave_out: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> Any:
        """The DataFrame with the answers."""
        import pandas

        frame = self._frame if leave_out is None else self._frame.drop(columns=leave_out)
        found: dict[str, Any] = {}
        for column in columns:
            values = [row.get(column.field) for row in rows]
            if column.kind == "count":
                found[column.name] = pandas.array(values, dtype="Int32")
            else:
                found[column.name] = _values(column, values)
        return frame.assign(**found)


class ArraysBatch:
    """A dict of arrays, the default form of a batch in Ray Data."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.names = [str(name) for name in columns]
        self._columns = columns

    def items(self, column: str, manifest: Manifest) -> list[Item | str]:
        """The sequence of each row, or why the model rejects it."""
        return arrays.items_or_reasons([*self._columns[column]], manifest, ask=False)

    def cell(self, column: str, row: int) -> Any:
        """One value."""
        return self._columns[column][row]

    def answered(self, leave_out: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> dict[str, Any]:
        """A dict with the answers."""
        found = {name: values for name, values in self._columns.items() if name != leave_out}
        for column in columns:
            values = [row.get(column.field) for row in rows]
            if column.kind == "count" and None not in values:
                found[column.name] = np.array(values, dtype=np.int32)
            else:
                found[column.name] = _values(column, values)
        return found


def _values(column: AnswerColumn, values: list[Any]) -> NDArray[Any]:
    """A column as an array: float32 with NaN where there is no number, or an object in each cell."""
    if column.kind == "number":
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
    cells = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        cells[row] = value
    return cells
