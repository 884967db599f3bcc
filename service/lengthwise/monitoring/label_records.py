"""Joins labels that came later to recorded sequences by their ids: then they are data to train on and to score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from lengthwise.errors import ConfigurationError
from lengthwise.monitoring import record_file


def read_labels(path: Path) -> dict[str, Any]:
    """The labels by id, from JSON Lines with `id` and `label`."""
    found: dict[str, Any] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = orjson.loads(line)
            identifier, label = fields["id"], fields["label"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ConfigurationError(
                f'{path}:{number}: the form of a line is {{"id": "a1", "label": "walk"}}'
            ) from None
        if found.setdefault(str(identifier), label) != label:
            raise ConfigurationError(f"{path}:{number}: the id {identifier!r} has another label before")
    return found


def join(directory: Path, labels: Mapping[str, Any], out: Path) -> tuple[int, int]:
    """Writes recorded sequences with a label (of one id the last) into a new file; their number, and all records'."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.exists():
        raise ConfigurationError(f"{out} exists; name another file")
    found: dict[str, dict[str, Any]] = {}
    total = 0
    for batch in record_file.batches(directory, ["id", "steps"]):
        total += batch.num_rows
        wanted = [i for i, name in enumerate(batch.column("id").to_pylist()) if name in labels]
        for row in batch.take(pa.array(wanted, pa.int64())).to_pylist():
            found[row["id"]] = row | {"label": labels[row["id"]]}
    if not found:
        raise ConfigurationError(
            f"none of the {len(labels)} labels belongs to one of the {total} records of {directory}"
        )
    try:
        pq.write_table(pa.Table.from_pylist(list(found.values())), out, compression="zstd")
    except (OSError, pa.ArrowException) as error:
        out.unlink(missing_ok=True)
        raise ConfigurationError(f"{out} cannot be written: {error}") from error
    return len(found), total
