"""The columns of a table of pandas, Polars or Arrow as arrays. None of them is imported for what is not its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ConfigurationError

if TYPE_CHECKING:
    from lengthwise.decoding.long_table import Cells


def is_of(given: Any, package: str) -> bool:
    """Whether a value has a type of a package, or one that is derived from it."""
    return package in sys.modules and any(kind.__module__.partition(".")[0] == package for kind in type(given).__mro__)


def columns_of(given: Any) -> dict[str, Cells] | None:
    """The columns of a table, with named levels of a pandas index; None for anything else."""
    found: Iterable[tuple[str, Cells]]
    if is_of(given, "pandas") and hasattr(given, "reset_index") and hasattr(given, "columns"):
        frame = given.reset_index() if given.index.nlevels > 1 or given.index.name is not None else given
        found = ((str(name), of_series(frame.iloc[:, place])) for place, name in enumerate(frame.columns))
    elif is_of(given, "polars") and hasattr(given, "get_columns"):
        found = ((column.name, _of_polars(column)) for column in given.get_columns())
    elif is_of(given, "pyarrow") and hasattr(given, "schema") and hasattr(given, "columns"):
        found = zip(given.schema.names, map(_of_arrow, given.columns), strict=True)
    else:
        return None
    columns: dict[str, Cells] = {}
    for name, cells in found:
        if name in columns:
            raise ConfigurationError(f"the column {name!r} is there twice; rename one")
        columns[name] = cells
    return columns


def of_series(series: Any) -> Cells:
    """The cells of a pandas column."""
    kind = getattr(series.dtype, "kind", "O")
    array: NDArray[Any]
    if kind in "Mm":
        array = series.to_numpy(dtype=f"{'datetime' if kind == 'M' else 'timedelta'}64[ns]")
    elif kind in "iu" and not series.isna().any():
        array = series.to_numpy(dtype=np.uint64 if kind == "u" else np.int64)
    elif kind in "fiu":
        array = series.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        return [None if missing else cell for cell, missing in zip(series.tolist(), series.isna(), strict=True)]
    return array


def _of_polars(series: Any) -> Cells:
    array: NDArray[Any] | None = series.to_numpy() if series.dtype.is_numeric() or series.dtype.is_temporal() else None
    return array if array is not None and array.dtype.kind in "fiuMm" else series.to_list()


def _of_arrow(column: Any) -> Cells:
    import pyarrow as pa

    kind = column.type
    is_time = pa.types.is_timestamp(kind) or pa.types.is_duration(kind)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_time:
        array: NDArray[Any] = pa.chunked_array(
            [column] if isinstance(column, pa.Array) else column.chunks, kind
        ).to_numpy()
        return array
    return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
