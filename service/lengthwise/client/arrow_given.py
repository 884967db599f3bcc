"""Arrow list columns as a caller's sequences; numbers that are float32 without null stay in their buffers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lengthwise.decoding.arrow_columns import check_columns, step_column
from lengthwise.errors import ConfigurationError, InvalidRequest


def sequences_of_arrow(given: Any) -> Iterator[Any]:
    """The rows of a list array, of a chunked one, or of a table with a column `steps`.

    Raises:
        ConfigurationError: It has no such column, or a column of another type.
    """
    import pyarrow as pa

    if isinstance(given, pa.Table | pa.RecordBatch):
        table = given if isinstance(given, pa.Table) else pa.Table.from_batches([given])
    elif isinstance(given, pa.Array | pa.ChunkedArray):
        table = pa.table({"steps": given})
    else:
        raise ConfigurationError(f"a list array or a table is wanted, this is a pyarrow {type(given).__name__}")
    try:
        check_columns(table.schema)
    except InvalidRequest as error:
        raise ConfigurationError(error.problems[0].detail) from None
    for batch in table.to_batches():
        yield from _rows(batch)


def _rows(batch: Any) -> Iterator[Any]:
    """The rows of a record batch; one that is no array of numbers as lists, to be explained."""
    steps = batch.column("steps")
    others = [
        batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows
        for name in ("id", "step_mask", "feature_mask")
    ]
    column = step_column(steps) if batch.num_rows and not steps.null_count else None
    for row, (identifier, step_mask, feature_mask) in enumerate(zip(*others, strict=True)):
        numbers = (
            steps[row].as_py() if column is None else column.numbers[column.offsets[row] : column.offsets[row + 1]]
        )
        yield {"id": identifier, "steps": numbers, "step_mask": step_mask, "feature_mask": feature_mask}
