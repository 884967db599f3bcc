"""Arrow tables with a list column of sequences: the steps are read from Arrow's memory, and become no Python objects.

```
list<list<float>>:  row offsets -> steps, step offsets -> values:   [r0 r1 ...]  [s0 s1 s2 ...]  [v v v v v v ...]
```

Where each step of a row has as many values as the model takes, the row is a view of its values. All other rows, and
columns of other types, are read as Python objects, by the rules for every array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lengthwise.decoding import arrays
from lengthwise.decoding.arrow_columns import is_fixed, offsets_of
from lengthwise.decoding.calls import Item
from lengthwise.padding import Steps
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
}
"""The type of each kind of column."""


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
        values = self._table.column(column)
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        return [item for chunk in chunks for item in _items(chunk, manifest)]

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


class _Lists(NamedTuple):
    """A list array.

    Attributes:
        starts: `[lists + 1]`: where each list begins in `inside`, and where the last one ends.
        missing: `[lists]`: whether a list is null; None if none is.
        inside: What the lists hold.
    """

    starts: NDArray[np.int64]
    missing: NDArray[np.bool_] | None
    inside: Any


def _lists(array: Any) -> _Lists | None:
    """An array as lists; None if it is none."""
    kind = array.type
    if not (is_fixed(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    starts = offsets_of(array)
    inside = array.values.slice(starts[0], starts[-1] - starts[0])
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    return _Lists(starts - starts[0], missing, inside)


def _items(array: Any, manifest: Manifest) -> Iterator[Item | str]:
    """The sequence of each row of one chunk, or why the model rejects it."""
    rows = _lists(array)
    ranges = None if rows is None else _ranges(rows, manifest)
    if ranges is None:
        yield from arrays.items_or_reasons(array.to_pylist(), manifest)
        return
    for row, steps in enumerate(ranges):
        if steps is None:
            yield from arrays.items_or_reasons([array[row].as_py()], manifest)
        else:
            yield arrays.accepted(steps, manifest)


def _ranges(rows: _Lists, manifest: Manifest) -> Iterator[Steps | None] | None:
    """The steps of each row, None for a row to read in another way; None if that holds for all of them."""
    features = manifest.input.features
    if manifest.input.kind == "tokens" or (features == 1 and _is_number(rows.inside.type)):
        return _plain(rows, manifest)
    steps = _lists(rows.inside)
    if steps is None or not _is_number(steps.inside.type):
        return None
    return _nested(rows, steps, features or 1)


def _plain(rows: _Lists, manifest: Manifest) -> Iterator[Steps | None] | None:
    """The rows of a list of token ids, or of the values of one feature."""
    if manifest.input.kind == "values":
        return _of_rows(rows, _floats(rows.inside)[:, None])
    if not pa.types.is_integer(rows.inside.type) or pa.types.is_uint64(rows.inside.type) or rows.inside.null_count:
        return None
    return _of_rows(rows, rows.inside.to_numpy(zero_copy_only=False).astype(np.int64, copy=False))


def _nested(rows: _Lists, steps: _Lists, features: int) -> Iterator[Steps | None]:
    """The rows of a list of lists of values."""
    odd = np.diff(steps.starts) != features
    if steps.missing is not None:
        odd |= steps.missing
    if not odd.any():
        return _of_rows(rows, _floats(steps.inside).reshape(-1, features))
    odd_before = np.concatenate([[0], np.cumsum(odd)])
    is_odd = odd_before[rows.starts[1:]] > odd_before[rows.starts[:-1]]
    if rows.missing is not None:
        is_odd |= rows.missing
    values, places = _floats(steps.inside), steps.starts[rows.starts].tolist()
    return (
        None if odd_row else values[start:end].reshape(-1, features)
        for odd_row, start, end in zip(is_odd, places[:-1], places[1:], strict=True)
    )


def _of_rows(rows: _Lists, values: Steps) -> Iterator[Steps | None]:
    """The part of each row; None where the row is null."""
    places = rows.starts.tolist()
    for row, (start, end) in enumerate(pairwise(places)):
        yield None if rows.missing is not None and rows.missing[row] else values[start:end]


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _floats(values: Any) -> NDArray[np.float32]:
    """Values as float32, with NaN for null."""
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype == np.float32:
        return numbers  # type: ignore[no-any-return]  # pyarrow has no types
    with np.errstate(over="ignore"):  # the error for a number too large for float32 names its step
        # Through double, as the numbers of a body. pyarrow has no types.
        return numbers.astype(np.float64, copy=False).astype(np.float32)  # type: ignore[no-any-return]
