"""Reads batches of engines (pandas, Arrow, a dict of arrays), and adds columns of answers, in the type of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from lengthwise.datasets.tables import arrow_cells, is_of
from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import Manifest, Task
from lengthwise.wrong_values import nearest

ColumnKind = Literal["text", "texts", "number", "numbers", "numbers of steps", "count", "windows"]
"""What a cell of a column of answers holds: a string; several strings; a float32; several; several for each step; an
int32; the windows of a sequence."""

Rows = Sequence[Mapping[str, Any]]  # one prediction a row, in the form of `POST /predict`, or its error under `error`

_MOST_LISTED: Final = 20  # columns in a message
_FIELDS: Final[Mapping[Task, Mapping[str, ColumnKind]]] = {
    "single-label": {"label": "text", "score": "number", "probabilities": "numbers"},
    "multi-label": {"assigned": "texts", "probabilities": "numbers"},
    "embedding": {"values": "numbers"},
    "per-step": {"step_labels": "texts", "step_scores": "numbers", "probabilities": "numbers of steps"},
}
_OPTIONAL_FIELDS: Final[Mapping[str, ColumnKind]] = {"attention": "numbers", "windows": "windows", "error": "text"}


class AnswerColumn(NamedTuple):
    """A column of answers, and the field of a prediction that it holds."""

    name: str  # of the column, with the prefix
    field: str  # of a prediction, as in the body of `POST /predict`
    kind: ColumnKind


def answer_columns(manifest: Manifest, *, attention: bool, errors: bool, prefix: str = "") -> list[AnswerColumn]:
    """The columns that the answers of a model add to a table, in order.

    Args:
        manifest: The manifest of the model.
        attention: Whether to add the attention weights.
        errors: Whether to add a column for the error of each row.
        prefix: Begins the name of each column.
    """
    optional = {"attention": attention, "windows": manifest.long == "window", "error": errors}
    fields = {**_FIELDS[manifest.task], "length": "count", **_OPTIONAL_FIELDS}
    return [AnswerColumn(prefix + field, field, kind) for field, kind in fields.items() if optional.get(field, True)]


def names_of(batch: Any) -> list[str]:
    """The names of a batch's columns.

    Raises:
        ConfigurationError: The batch is of none of the types that are taken.
    """
    if _is_arrow(batch):
        return list(batch.schema.names)
    if isinstance(batch, Mapping) or (is_of(batch, "pandas") and hasattr(batch, "columns")):
        return [str(name) for name in batch]
    raise ConfigurationError(
        "a batch is a pandas DataFrame, an Arrow Table or RecordBatch, or a dict of arrays; "
        f"this is a {type(batch).__name__}. For a list of sequences there is Scorer.predictions"
    )


def _is_arrow(batch: Any) -> bool:
    return is_of(batch, "pyarrow") and hasattr(batch, "schema")


def check_names(
    names: Sequence[str], steps: str, static: Sequence[str], columns: Sequence[AnswerColumn], *, keep_steps: bool
) -> None:
    """Checks that a table has one column of sequences, those of static values, and none with the name of an answer.

    Args:
        names: The names of the table's columns.
        steps: The name of the column of sequences.
        static: The names of the columns of static values.
        columns: The columns of answers.
        keep_steps: Whether the column of sequences is kept, so that no answer may have its name.

    Raises:
        ConfigurationError: A column is missing, one that is read is there twice, or an answer has the name of one.
    """
    for name in (steps, *static):
        if names.count(name) > 1:
            raise ConfigurationError(f"the batch has {names.count(name)} columns {name!r}")
        if name not in names:
            listed = ", ".join(map(repr, names[:_MOST_LISTED])) or "none"
            cure = "steps='NAME') names the column that has the sequences"
            raise ConfigurationError(
                f"the batch has no column {name!r}{nearest(name, names)}; its columns are {listed}. Scorer(..., "
                f"{cure if name == steps else 'static=[...]) names those of the static values'}"
            )
    repeated_names = [
        column.name for column in columns if column.name in names and (keep_steps or column.name != steps)
    ]
    if repeated_names:
        raise ConfigurationError(
            f"the batch has a column {', '.join(map(repr, repeated_names))}, and so have the answers; "
            "Scorer(..., prefix='predicted_') puts a prefix before the names of the answers"
        )


def cells_of(batch: Any, column: str) -> list[Any]:
    """The values of a column, one for each row; sequences in Arrow are views of its memory, without Python objects."""
    return [*arrow_cells(batch.column(column), batch.schema.field(column))] if _is_arrow(batch) else [*batch[column]]


def with_answers(batch: Any, left_out_column: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> Any:
    """Adds columns for the answers to a batch; returns a new batch of the same type.

    `left_out_column` is not in the result; None keeps all columns. `rows` has the prediction of each row.
    """
    if _is_arrow(batch):
        return _arrow_with_answers(batch, left_out_column, columns, rows)
    answer_columns = {column.name: _values(column.kind, [row.get(column.field) for row in rows]) for column in columns}
    if isinstance(batch, Mapping):
        return {name: values for name, values in batch.items() if name != left_out_column} | answer_columns
    import pandas

    counts = {
        column.name: pandas.array([row.get(column.field) for row in rows], dtype="Int32")  # which has a missing value
        for column in columns
        if column.kind == "count"
    }
    return (batch if left_out_column is None else batch.drop(columns=left_out_column)).assign(**answer_columns | counts)


def _values(kind: ColumnKind, values: list[Any]) -> Any:
    """Converts the values of a column of answers to a NumPy array.

    A `number` becomes float32, with NaN for None; a `count` int32, unless one is None; all others become objects.
    """
    if kind == "number":
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)
    if kind == "count" and None not in values:
        return np.array(values, dtype=np.int32)
    cells = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        cells[row] = value
    return cells


def _arrow_with_answers(table: Any, left_out_column: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> Any:
    """Adds columns for the answers to a Table or a RecordBatch of Arrow, in Arrow's types; returns a new one.

    `left_out_column` is not in the result; None keeps all columns.
    """
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    windows = pa.struct([("start", pa.int32()), ("length", pa.int32()), ("probabilities", numbers)])
    types: dict[ColumnKind, Any] = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "number": pa.float32(),
        "numbers": numbers,
        "numbers of steps": pa.list_(numbers),
        "count": pa.int32(),
        "windows": pa.list_(windows),
    }
    indices = [index for index, name in enumerate(table.schema.names) if name != left_out_column]
    fields = [table.schema.field(index) for index in indices]
    values = [table.column(index) for index in indices]
    for column in columns:
        cells = [row.get(column.field) for row in rows]
        if column.kind == "numbers of steps":  # Arrow takes a list of arrays, but no array with two axes
            cells = [None if cell is None else list(cell) for cell in cells]
        fields.append(pa.field(column.name, types[column.kind]))
        values.append(pa.array(cells, type=types[column.kind]))
    return type(table).from_arrays(values, schema=pa.schema(fields, metadata=table.schema.metadata))
