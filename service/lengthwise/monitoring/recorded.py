"""Joins labels to recorded sequences, for `lengthwise label`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lengthwise.errors import ConfigurationError
from lengthwise.monitoring import record_file


def join(directory: Path, labels: Mapping[str, Any], out: Path) -> tuple[int, int]:
    """Writes the recorded sequences that have a label to a new Parquet file; of records with one id, only the last.

    The last is the one that arrived last: files of several workers overlap in time.

    Args:
        directory: The folder of the records.
        labels: The labels, by the ids of the sequences.
        out: The file to write.

    Returns:
        How many sequences were written, and how many records there are.

    Raises:
        ConfigurationError: The file exists or cannot be written, no label belongs to a record, or those with a label
            are of several models, or the names of features differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.exists():
        raise ConfigurationError(f"{out} exists; name another file")
    rows_by_id: dict[str, tuple[int, dict[str, Any]]] = {}  # with the moment that each arrived
    models: set[str] = set()  # of the records with a label
    names: set[bytes | None] = set()  # the names of the features in each file, as JSON; None if it has none
    total = 0
    for batch in record_file.batches(directory, ["id", "steps", "model", "arrived"]):
        total += batch.num_rows
        names.add((batch.schema.metadata or {}).get(record_file.NAMES))
        indices = [index for index, name in enumerate(batch.column("id").to_pylist()) if name in labels]
        taken = batch.take(pa.array(indices, pa.int64()))
        moments = taken.column("arrived").cast(pa.int64()).to_pylist()  # as times they would need a database of zones
        models.update(taken.column("model").to_pylist())
        for row, arrived in zip(taken.select(["id", "steps"]).to_pylist(), moments, strict=True):
            if arrived >= rows_by_id.get(row["id"], (arrived,))[0]:
                rows_by_id[row["id"]] = (arrived, row | {"label": labels[row["id"]]})
    if not rows_by_id:
        raise ConfigurationError(
            f"none of the {len(labels)} labels belongs to one of the {total} records of {directory}"
        )
    if len(models) > 1:
        listed = ", ".join(sorted(models))
        raise ConfigurationError(
            f"the labels belong to records of {listed} in {directory}: give each model a folder of its own"
        )
    if len(names) > 1:
        raise ConfigurationError(f"the records of {directory} have other names of features: join those of one model")
    feature_names = names.pop()
    metadata = {record_file.NAMES: feature_names} if feature_names else None
    try:
        table = pa.Table.from_pylist([row for _, row in rows_by_id.values()]).replace_schema_metadata(metadata)
        pq.write_table(table, out, compression="zstd")
    except (OSError, pa.ArrowException) as error:
        out.unlink(missing_ok=True)
        raise ConfigurationError(f"{out} cannot be written: {error}") from error
    return len(rows_by_id), total
