"""A recorded load (`lengthwise serve --record`), sent again: the same sequences, in the same requests, as far apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.bench.workload import Input
from lengthwise.errors import ConfigurationError, how_to_install
from lengthwise.padding import Steps

_NEEDED: Final = ("request", "arrived", "length", "model", "steps")


@dataclass(frozen=True, slots=True)
class RecordedLoad:
    """The requests of a recording, and when each arrived, in seconds after the first one."""

    requests: Sequence[Sequence[Steps]]
    moments: Sequence[float]


def read(path: Path, step: Input, *, model: str | None = None) -> RecordedLoad:
    """Reads record files, a file or a folder of `record-*.parquet`; `model` is None where they have one name only."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigurationError(f"--replay needs pyarrow: {how_to_install('parquet')}") from error
    files = sorted(path.glob("record-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(f"--replay {path}: the folder has no record-*.parquet")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            names = opened.schema_arrow.names
            missing = {*_NEEDED} - set(names)
            if missing:
                raise ConfigurationError(
                    f"--replay {file}: it has no column {', '.join(sorted(missing))}; 'lengthwise serve --record' "
                    "writes files that can be replayed"
                )
            rows += opened.read(columns=[*_NEEDED]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"--replay {file} cannot be read as Parquet: {error}") from error
    recorded = sorted({row["model"] for row in rows})
    if model is None and len(recorded) > 1:
        raise ConfigurationError(f"--replay {path}: say which --model; there are records of {', '.join(recorded)}")
    rows = [row for row in rows if model in (None, row["model"])]
    if not rows:
        raise ConfigurationError(f"--replay {path}: no records of {model}; there are records of {', '.join(recorded)}")
    return _load(rows, step, path)


def _load(rows: Sequence[dict[str, Any]], step: Input, path: Path) -> RecordedLoad:
    grouped: dict[tuple[Any, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["arrived"], row["request"]), []).append(row)
    order = sorted(grouped)
    requests = [[_steps(row["steps"], step, path) for row in grouped[key]] for key in order]
    first = order[0][0]
    return RecordedLoad(requests, [(arrived - first).total_seconds() for arrived, _ in order])


def _steps(values: list[Any], step: Input, path: Path) -> Steps:
    if step.kind == "tokens":
        return np.array(values, dtype=np.int64)
    steps = np.array(values, dtype=np.float32)
    if steps.ndim != 2 or steps.shape[1] != step.size:
        raise ConfigurationError(f"--replay {path}: the model takes {step.size} values a step, the records have others")
    return steps
