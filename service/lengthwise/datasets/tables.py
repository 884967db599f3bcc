"""Converts tables of pandas, Polars and Arrow, and array-likes of any kind, to NumPy arrays.

None of these packages is imported here for a value of another kind. *Cells* are the values of one column. A list column
of Arrow is read without a Python object for each number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain, pairwise
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import ADVICE_ON_TAILS, rounded
from lengthwise.errors import ConfigurationError

Cells: TypeAlias = "NDArray[Any] | list[Any]"  # numbers, times, `Texts`, or objects with None where one is missing
Padding = Literal["zeros", "nan"]  # what all values of a padded step are: 0, or missing
MISSING: Final = frozenset(("", "nan", "null", "na", "n/a", "none", "?"))  # in lower case
INT64: Final = np.iinfo(np.int64)
MOST_SHOWN: Final = 40  # characters of a value in a message


def is_of(value: Any, package: str) -> bool:
    """Whether the type of a value, or one of its base classes, is defined in a package that is imported already."""
    return package in sys.modules and any(base.__module__.partition(".")[0] == package for base in type(value).__mro__)


class TableColumns(dict[str, "Cells"]):
    """The cells of a table's columns by the columns' names.

    `levels` are the names of the columns that were levels of the table's pandas index; they are no features.
    """

    def __init__(self, columns: Iterable[tuple[str, Cells]] = (), levels: Iterable[str] = ()) -> None:
        """Takes the columns as pairs of name and cells.

        Raises:
            ConfigurationError: Two columns have the same name.
        """
        super().__init__()
        self.levels = frozenset(levels)
        for name, cells in columns:
            if self.setdefault(name, cells) is not cells:
                raise ConfigurationError(f"the column {name!r} is there twice; rename one")

    @property
    def date_levels(self) -> list[str]:
        """The levels of the index that hold dates or durations."""
        return [name for name in self.levels if getattr(getattr(self[name], "dtype", None), "kind", "O") in "Mm"]

    def without(self, names: Set[str]) -> TableColumns:
        """A new table without the columns of these names."""
        return TableColumns(((name, cells) for name, cells in self.items() if name not in names), self.levels - names)


class Texts(list[str]):
    """The cells of a column of a text file, where a number is a text, too. `lines`: the line of each cell, from 1."""

    def __init__(self, cells: Iterable[str] = (), lines: Sequence[int] = ()) -> None:
        super().__init__(cells)
        self.lines = lines


def is_number(cell: str) -> bool:
    """Whether the text of a cell is a number, or one of the texts for a missing number (`MISSING`)."""
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return True


def id_text(value: Any) -> str:
    """An id as text, without blanks around it; a whole float as a whole number: pandas makes floats of numbers."""
    return str(int(value) if isinstance(value, float | np.floating) and value.is_integer() else value).strip()


def has_float_ids(cells: Cells) -> bool:
    """Whether ids are whole numbers that became floats; in a text file, whether all of them look like it: `1.0`."""
    return (
        all(cell.strip().endswith(".0") and cell.strip()[:-2].isdecimal() for cell in cells)
        if isinstance(cells, Texts)
        else any(isinstance(cell, float) and cell.is_integer() for cell in getattr(cells, "tolist", lambda: cells)())
    )


def is_missing(cell: Any) -> bool:
    """Whether a cell is None, NaN or a blank text."""
    return cell is None or (isinstance(cell, float) and cell != cell) or (isinstance(cell, str) and not cell.strip())


def row_text(cells: Cells, row: int) -> str:
    """The place of a row for a message: `line 7` of a text file, counted from 1, or `row 5` of a table, from 0."""
    return f"line {cells.lines[row]}" if isinstance(cells, Texts) and cells.lines else f"row {row}"


def columns_of(table: Any) -> TableColumns | None:
    """The columns of a table of pandas, Polars or Arrow; None if the value is no table.

    The levels of a pandas index are columns, too, unless they are just row numbers.
    """
    if isinstance(table, TableColumns):
        return table
    if type(table).__name__ == "DataFrame" and any("xtension" in str(dtype) for dtype in table.dtypes):
        import pyarrow as pa

        table = pa.table(table)  # pandas and Polars hold an extension type of Arrow, and do not know its shape
    if is_of(table, "pandas") and type(table).__name__ == "Series" and table.index.nlevels > 1:
        table = table.to_frame()
    if is_of(table, "pandas") and hasattr(table, "reset_index") and hasattr(table, "columns"):
        name_levels = [name if isinstance(name, tuple) else (name,) for name in table.columns]  # tuples: a pivot table
        names = ["_".join(filter(None, map(str, part))) for part in name_levels]
        pairs = ((name, series_cells(table.iloc[:, index])) for index, name in enumerate(names))
        levels = _levels(table.index)
        return TableColumns(chain(((name, levels[name]) for name in levels if name not in {*names}), pairs), levels)
    if is_of(table, "polars") and hasattr(table, "get_columns"):
        return TableColumns((column.name, _polars_cells(column)) for column in table.get_columns())
    if is_of(table, "pyarrow") and hasattr(table, "schema") and hasattr(table, "columns"):
        return TableColumns(
            zip(table.schema.names, map(arrow_cells, table.columns, table.schema), strict=True),
            _written_index(table.schema.metadata or {}),
        )
    return None


def _written_index(metadata: Mapping[bytes, bytes]) -> list[str]:
    """The names of the columns that were levels of a pandas index, as pandas wrote them to Arrow's metadata.

    Empty if there is no such metadata, or it cannot be parsed.
    """
    try:
        written = json.loads(metadata[b"pandas"])["index_columns"]
        return [name for name in written if isinstance(name, str)]  # an entry that is no text describes a RangeIndex
    except (ValueError, KeyError, TypeError):
        return []


def _levels(index: Any) -> dict[str, Cells]:
    """The levels of a pandas index by name; empty for an unnamed index that only numbers the rows (without times)."""
    if index.nlevels == 1 and index.name is None and not hasattr(index, "freq"):
        return {}
    default_names = [f"level_{level}" if index.nlevels > 1 else "index" for level in range(index.nlevels)]
    names = [
        default_name if name is None else str(name)
        for name, default_name in zip(index.names, default_names, strict=True)
    ]
    return {name: series_cells(index.get_level_values(level).to_series()) for level, name in enumerate(names)}


def series_cells(series: Any) -> Cells:
    """The cells of a pandas column: an array of numbers or times (NaN, NaT if missing), or a list of objects (None)."""
    dtype_kind = getattr(series.dtype, "kind", "O")
    if dtype_kind in "Mm":
        return np.asarray(series.to_numpy(dtype=f"{'datetime' if dtype_kind == 'M' else 'timedelta'}64[ns]"))
    if dtype_kind in "iu" and not series.isna().any():
        return np.asarray(series.to_numpy(dtype=np.uint64 if dtype_kind == "u" else np.int64))
    if dtype_kind in "fiu":
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return [None if missing else cell for cell, missing in zip(series.tolist(), series.isna(), strict=True)]


def _polars_cells(series: Any) -> Cells:
    """The cells of a Polars column: an array of numbers or times, or a list of objects."""
    array: NDArray[Any] | None = series.to_numpy() if series.dtype.is_numeric() or series.dtype.is_temporal() else None
    return array if array is not None and array.dtype.kind in "fiuMm" else series.to_list()


def arrow_cells(column: Any, field: Any = None) -> Cells:
    """The cells of an Arrow array, which may have several chunks: an array of numbers or times, else a list of objects.

    In that list, a cell with a list of numbers, or with a tensor, is a NumPy array.

    Args:
        column: The array.
        field: Its field in the table's schema, which names an extension type that is not registered here, as Ray's.

    Raises:
        ConfigurationError: The cells are tensors of an extension type, whose shapes are not known.
    """
    import pyarrow as pa

    arrow_type, chunks = column.type, [column] if isinstance(column, pa.Array) else column.chunks
    is_time = pa.types.is_timestamp(arrow_type) or pa.types.is_duration(arrow_type)
    if pa.types.is_floating(arrow_type) or is_time or (pa.types.is_integer(arrow_type) and not column.null_count):
        return np.asarray(pa.chunked_array(chunks, arrow_type).to_numpy())
    if hasattr(getattr(arrow_type, "value_type", None), "extension_name"):  # a list of tensors, each of them a step
        return [[*arrow_cells(row.values)] if row.is_valid else None for chunk in chunks for row in chunk]
    storage, written = getattr(arrow_type, "storage_type", arrow_type), getattr(field, "metadata", None) or {}
    name = getattr(arrow_type, "extension_name", written.get(b"ARROW:extension:name", b"").decode())
    if not name or not (
        pa.types.is_struct(storage) or pa.types.is_primitive(getattr(storage, "value_type", None) or pa.null())
    ):
        return [cell for chunk in chunks for cell in _list_cells(chunk)]
    # Tensors, which an extension type holds flat
    try:
        shape = tuple(getattr(arrow_type, "shape", None) or json.loads(written[b"ARROW:extension:metadata"]))
        order = getattr(arrow_type, "permutation", None) or range(len(shape))  # of the axes
        return [
            row.values.to_numpy(zero_copy_only=False).reshape(shape).transpose(order) if row.is_valid else None
            for chunk in chunks
            for row in getattr(chunk, "storage", chunk)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{f'the column {field.name!r}' if field else 'the array'} has Arrow's extension type {name}, and no shape "
            "that all of its rows have: write lists of lists of numbers in its place"
        ) from error


def _list_cells(column: Any) -> Iterator[Any]:
    """Yields the cells of one chunk of Arrow: lists of numbers as NumPy arrays, all other cells as Python objects.

    A chunk that `_sequences_of` cannot read as a whole is halved, until each bad row stands alone.
    """
    import pyarrow as pa

    is_readable = len(column) > 0 and _has_sequences(column.type)
    sequences = _sequences_of(column) if is_readable and not column.null_count else None
    if sequences is not None:
        yield from sequences
    elif len(column) < 2 or not is_readable:
        yield from column.to_pylist()
    else:
        half = len(column) // 2
        for indices in (range(half), range(half, len(column))):
            yield from _list_cells(column.take(pa.array(indices)))  # `take` copies: only the values of these rows


def _has_sequences(arrow_type: Any) -> bool:
    """Whether a column of an Arrow type has a sequence in each row: a list of numbers, or of lists of numbers."""
    from pyarrow import types

    if not (types.is_list(arrow_type) or types.is_large_list(arrow_type)):
        return False
    inner = arrow_type.value_type
    if types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
    return bool(types.is_floating(inner) or types.is_integer(inner))


def _sequences_of(column: Any) -> list[NDArray[Any]] | None:
    """The sequences of a column, as views of its memory: `[steps, features]` or `[steps]`, with NaN for a null number.

    The column must be one for which `_has_sequences` is true, and have no null row. Returns None if one array cannot
    hold the steps of all rows, so that the caller has to convert each row by itself:
    - steps have different numbers of features, or a step is null;
    - a number is null in a column of `[steps]`: token ids must not become floats.
    """
    all_steps = column.values  # of all rows, one row behind the other
    if all_steps.null_count:
        return None
    if hasattr(all_steps, "value_lengths"):  # a step is a list of features
        counts: NDArray[Any] = all_steps.value_lengths().to_numpy(zero_copy_only=False)
        features = int(counts[0]) if len(counts) else getattr(all_steps.type, "list_size", 1)
        if features < 1 or np.any(counts != features):
            return None
        steps = all_steps.flatten().to_numpy(zero_copy_only=False).reshape(-1, features)
    else:
        steps = all_steps.to_numpy(zero_copy_only=False)
    return [steps[start:end] for start, end in pairwise(column.offsets.to_pylist())]


def with_null_steps(steps: Any, padding: Padding | None = None) -> Any:
    """The steps of one sequence, with a step of missing values in the place of each step that is null.

    Of steps with one feature, null is a missing value. Of steps with several, a null is refused, as in `POST /predict`,
    unless `padding` is nan, by which steps without values are known. Other data than a list of lists or of objects is
    returned as it is.

    Raises:
        ValueError: A step of several features is null; the message names the first one.
    """
    rows = steps if isinstance(steps, list | tuple) else ()
    example = next(
        (step for step in rows if isinstance(step, list | tuple | Mapping) or getattr(step, "ndim", 0) > 0), None
    )
    if example is None or not any(map(is_missing, rows)):
        return steps
    if padding != "nan" and (len(example) > 1 or isinstance(example, Mapping)):
        raise ValueError(
            f"step {[*map(is_missing, rows)].index(True)}: a step must be an array of {len(example)} numbers, got null"
            f"; {ADVICE_ON_TAILS}"
        )
    return [
        ({} if isinstance(example, Mapping) else [None] * len(example)) if is_missing(step) else step for step in rows
    ]


def as_array(value: Any, padding: Padding | None = None) -> NDArray[Any]:
    """Converts an array-like to an array of numbers of the same shape; NaN for None and for masked values.

    Raises:
        ValueError: It cannot be converted; or a step is null that may not be, by `with_null_steps`.
    """
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        value = np.ma.filled(value.astype(np.promote_types(value.dtype, np.float32)), np.nan)
    if isinstance(value, np.ndarray) and value.dtype.kind == "O" and value.ndim == 1:
        value = value.tolist()  # an array of arrays, one for each step, as in a column of lists of pandas
    value = with_null_steps(value, padding)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        # Of steps of different sizes: how many values each has, and the first step that has not as many as step 0
        counts = (
            [len(step) if isinstance(step, list | tuple) else (getattr(step, "shape", ()) or (1,))[0] for step in value]
            if "inhomogeneous" in str(error)
            else []
        )
        other = next((index for index, count in enumerate(counts) if count != counts[0]), None)
        if other is not None:
            sizes = f"step {other} has {counts[other]}, step 0 has {counts[0]}"
            raise ValueError(f"its steps have different numbers of features: {sizes}") from error
        raise ValueError(str(error)) from error
    if array.dtype.kind != "O":
        return array
    # None among numbers, or a whole number past 64 bits: one by one, since NumPy would take texts for numbers too.
    numbers = np.empty(array.shape, dtype=np.float64)
    for index, cell in np.ndenumerate(array):
        if cell is None:
            numbers[index] = np.nan
        elif isinstance(cell, int | float | np.integer | np.floating) and not isinstance(cell, bool):
            try:
                numbers[index] = cell
            except OverflowError:
                numbers[index] = np.inf
        else:
            raise ValueError(f"values must be numbers, got {str(cell)[:MOST_SHOWN]!r} (a {type(cell).__name__})")
    return numbers


def steps_array(value: Any, padding: Padding | None = None) -> NDArray[Any]:
    """Converts the steps of one sequence to an array `[length, features]` or `[length]` of float32.

    Whole numbers `[length]` may be token ids: they become int64, or stay uint64 where one is too large for int64.

    Raises:
        ValueError: They are not numbers, have another form, or one is not finite as float32.
    """
    if type(value) is np.ndarray and value.dtype == np.float32:
        array: NDArray[Any] = value
    elif value is None or (isinstance(value, float) and np.isnan(value)):  # pandas writes NaN for None
        raise ValueError("its steps are missing")
    elif is_of(value, "pandas") and value.ndim == 1:
        array = as_array(series_cells(value), padding)
    else:
        array = as_array(value.to_list() if is_of(value, "polars") else value, padding)
    if array.ndim not in (1, 2):
        hint = "" if array.ndim else "; put a single sequence in a list too"
        raise ValueError(f"the shape must be [length, features] or [length], got {[*array.shape]}{hint}")
    if array.dtype.kind not in "fiu":
        if array.size:
            words = "; words are token ids after a tokenizer" if array.dtype.kind in "US" else ""
            raise ValueError(f"values must be numbers, got an array of {array.dtype}{words}")
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.ndim == 1:
        return array if array.dtype == np.uint64 and (array > INT64.max).any() else array.astype(np.int64, copy=False)
    if array.dtype != np.float32:
        array = rounded(array)
    if np.isinf(array).any():
        step = int(np.argwhere(np.isinf(array))[0][0])
        raise ValueError(f"step {step} holds a number that is not finite as float32 (infinity, or too large)")
    return np.ascontiguousarray(array)


def input_steps(name: str, steps: Any) -> NDArray[Any]:
    """The steps of one of several sequences as an array, `[length, features]`, or `[length]` which may be token ids.

    Raises:
        ValueError: They are no numbers; the message begins with the name of the sequence.
    """
    try:
        return steps_array(steps)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
