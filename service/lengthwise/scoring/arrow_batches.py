"""Arrow tables with a list column of sequences: the steps are read from Arrow's memory, without Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from lengthwise.datasets import arrays
from lengthwise.datasets.tables import of_arrow
from lengthwise.decoding.calls import Item
from lengthwise.runtime.manifest import Manifest
from lengthwise.scoring.answer_columns import AnswerColumn, ColumnKind, Rows

TYPES: Final[dict[ColumnKind, Any]] = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "number": pa.float32(),
    "numbers": pa.list_(pa.float32()),
    "numbers of steps": pa.list_(pa.list_(pa.float32())),
    "count": pa.int32(),
    "windows": pa.list_(
        pa.struct([("start", pa.int32()), ("length", pa.int32()), ("probabilities", pa.list_(pa.float32()))])
    ),
}  # of each kind of column


def is_table(batch: Any) -> bool:
    """Whether it is a table or a record batch."""
    return isinstance(batch, pa.Table | pa.RecordBatch)


class ArrowBatch:
    """An Arrow Table or RecordBatch."""

    def __init__(self, table: Any) -> None:
        self.names: list[str] = list(table.schema.names)
        self._table = table

    def items(self, column: str, manifest: Manifest) -> list[Item | str]:
        """The sequence of each row, or why the model rejects it."""
        return arrays.items_or_reasons([*of_arrow(self._table.column(column))], manifest, ask=False)

    def cell(self, column: str, row: int) -> Any:
        """One value."""
        return self._table.column(column)[row].as_py()

    def answered(self, leave_out: str | None, columns: Sequence[AnswerColumn], rows: Rows) -> Any:
        """The table with the answers."""
        schema = self._table.schema
        kept = [place for place, name in enumerate(self.names) if name != leave_out]
        fields = [schema.field(place) for place in kept]
        values = [self._table.column(place) for place in kept]
        for column in columns:
            fields.append(pa.field(column.name, TYPES[column.kind]))
            values.append(pa.array(_cells(column, rows), type=TYPES[column.kind]))
        return type(self._table).from_arrays(values, schema=pa.schema(fields, metadata=schema.metadata))


def _cells(column: AnswerColumn, rows: Rows) -> list[Any]:
    cells = [row.get(column.field) for row in rows]
    if column.kind == "numbers of steps":  # Arrow takes a list of arrays, and no array of two axes
        return [None if cell is None else list(cell) for cell in cells]
    return cells
