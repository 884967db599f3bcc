"""A recorded load (`lengthwise serve --record`), sent again: the same sequences, in the same requests, as far apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from lengthwise.bench.workload import Input
from lengthwise.errors import ConfigurationError
from lengthwise.padding import Steps

_NEEDED: Final = ("request", "arrived", "model", "steps")


class RecordedLoad(NamedTuple):
    """The requests of a recording, and when each arrived, in seconds after the first one."""

    requests: Sequence[Sequence[Steps]]
    moments: Sequence[float]


def read(path: Path, step: Input, *, model: str | None = None) -> RecordedLoad:
    """Reads record files, a file or a folder of `record-*.parquet`; `model` is None where they have one name only.

    Raises:
        ConfigurationError: There are no such records, a file is not one of `--record`, or `model` must be named.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("record-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"--replay {path}: the folder has no record-*.parquet")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += pq.ParquetFile(file).read(columns=[*_NEEDED]).select(_NEEDED).to_pylist()
        except KeyError as error:
            raise ConfigurationError(
                f"--replay {file} lacks a column of files that 'lengthwise serve --record' writes: {error.args[0]}"
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"--replay {file} cannot be read as Parquet: {error}") from error
    recorded = sorted({row["model"] for row in rows})
    if model is None and len(recorded) > 1:
        raise ConfigurationError(f"--replay {path}: say which --model; there are records of {', '.join(recorded)}")
    grouped: dict[tuple[Any, str], list[Steps]] = {}
    for row in rows:
        if model in (None, row["model"]):
            grouped.setdefault((row["arrived"], row["request"]), []).append(_steps(row["steps"], step, path))
    if not grouped:
        raise ConfigurationError(f"--replay {path}: no records of {model}; there are records of {', '.join(recorded)}")
    order = sorted(grouped)
    moments = [(arrived - order[0][0]).total_seconds() for arrived, _ in order]
    return RecordedLoad([grouped[key] for key in order], moments)


def _steps(values: list[Any], step: Input, path: Path) -> Steps:
    if step.kind == "tokens":
        return np.array(values, dtype=np.int64)
    steps = np.array(values, dtype=np.float32)
    if steps.ndim != 2 or steps.shape[1] != step.size:
        raise ConfigurationError(f"--replay {path}: the model takes {step.size} values a step, the records have others")
    return steps
