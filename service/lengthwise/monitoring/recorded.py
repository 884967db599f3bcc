"""Uses recorded sequences: `report` compares them with the training data, `join` writes those that have a label."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lengthwise.errors import ConfigurationError
from lengthwise.monitoring import record_file
from lengthwise.monitoring.drift import append_or_add, name_of
from lengthwise.padding import Steps
from lengthwise.runtime.data_profile import WINDOW_SEQUENCES, DataProfile, ProfileCounter, ProfileCounts
from lengthwise.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Recorded sequences of one model, compared with its training data."""

    manifest: Manifest
    profile: DataProfile
    counts: ProfileCounts  # of all sequences, in the profile's bins
    drift: dict[str, float]  # the PSI by aspect (see `drift`), of all sequences
    over_time: Sequence[dict[str, float]]  # the same for each `WINDOW_SEQUENCES`, in order of arrival

    @property
    def drifted(self) -> list[str]:
        """The aspects whose PSI exceeds the limit."""
        return [aspect for aspect, psi in self.drift.items() if psi > self.profile.limits.of(aspect)]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object, for the option `--json`."""
        return {
            "model": self.manifest.key,
            "sequences": self.counts.sequences,
            "drifted": self.drifted,
            "drift": [
                {
                    "what": aspect,
                    "name": name_of(aspect, self.manifest),
                    "psi": psi,
                    "limit": self.profile.limits.of(aspect),
                }
                for aspect, psi in self.drift.items()
            ],
            "over_time": list(self.over_time),
        }


def report(directory: Path, manifest: Manifest) -> DriftReport:
    """Compares the records of a model in a folder with its training data.

    Raises:
        ConfigurationError: The manifest has no profile of the training data, or there are no records of the model.
    """
    profile = manifest.training
    if profile is None:
        raise ConfigurationError(
            f"{manifest.key} has no profile of its training data: export it again with --data, or from a checkpoint of "
            "'lengthwise train'"
        )
    counter = ProfileCounter(profile, manifest.classes)
    label_indices = {label: index for index, label in enumerate(manifest.labels)}
    windows: list[ProfileCounts] = []  # each of at least `WINDOW_SEQUENCES`, but the last one may have fewer
    versions: set[str] = set()  # all that were recorded, for a message
    for batch in record_file.batches(directory, ["model", "version", "steps", "answer"]):
        rows_with_keys = [(f"{row['model']}/{row['version']}", row) for row in batch.to_pylist()]
        versions.update(key for key, _ in rows_with_keys)
        rows = [row for key, row in rows_with_keys if key == manifest.key]
        if not rows:
            continue
        answers = [label_indices[label] for row in rows for label in row["answer"] if label in label_indices]
        block = counter.count([_array(row["steps"], manifest) for row in rows], answers)
        append_or_add(windows, block, WINDOW_SEQUENCES)
    if not windows:
        raise ConfigurationError(
            f"{directory}: there are no records of {manifest.key}, but of {', '.join(sorted(versions)) or 'no other'}; "
            "a file is read when it is complete: after minutes or when the service stops"
        )
    total = reduce(operator.add, windows)
    over_time = [counter.drift(window) for window in windows if window.sequences >= WINDOW_SEQUENCES]
    return DriftReport(manifest, profile, total, counter.drift(total), over_time)


def _array(steps: list[Any], manifest: Manifest) -> Steps:
    """Recorded steps as an array of the form that the model takes.

    Raises:
        ConfigurationError: They have another form.
    """
    try:
        if manifest.input.kind == "tokens":
            return np.array(steps, dtype=np.int64)
        return np.array(steps, dtype=np.float32).reshape(len(steps), manifest.input.features or 1)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"a record has steps of another form than {manifest.key} takes: {error}") from error


def read_labels(path: Path) -> dict[str, Any]:
    """Reads labels from JSON Lines, and returns them by id.

    Raises:
        ConfigurationError: The file cannot be read, a line has another form, or two lines give one id different labels.
    """
    labels: dict[str, Any] = {}
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
        if labels.setdefault(str(identifier), label) != label:
            raise ConfigurationError(f"{path}:{number}: the id {identifier!r} has another label before")
    return labels


def join(directory: Path, labels: Mapping[str, Any], out: Path) -> tuple[int, int]:
    """Writes the recorded sequences that have a label to a new Parquet file; of records with one id, the last.

    Returns how many were written, and how many records there are.

    Raises:
        ConfigurationError: The file exists or cannot be written, no label belongs to a record, or the names of features
            differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.exists():
        raise ConfigurationError(f"{out} exists; name another file")
    rows_by_id: dict[str, dict[str, Any]] = {}
    names: set[bytes | None] = set()  # of the features, as the files have them
    total = 0
    for batch in record_file.batches(directory, ["id", "steps"]):
        total += batch.num_rows
        names.add((batch.schema.metadata or {}).get(record_file.NAMES))
        indices = [index for index, name in enumerate(batch.column("id").to_pylist()) if name in labels]
        for row in batch.take(pa.array(indices, pa.int64())).to_pylist():
            rows_by_id[row["id"]] = row | {"label": labels[row["id"]]}
    if not rows_by_id:
        raise ConfigurationError(
            f"none of the {len(labels)} labels belongs to one of the {total} records of {directory}"
        )
    if len(names) > 1:
        raise ConfigurationError(f"the records of {directory} have other names of features: join those of one model")
    metadata = {record_file.NAMES: feature_names} if (feature_names := names.pop()) else None
    try:
        table = pa.Table.from_pylist(list(rows_by_id.values())).replace_schema_metadata(metadata)
        pq.write_table(table, out, compression="zstd")
    except (OSError, pa.ArrowException) as error:
        out.unlink(missing_ok=True)
        raise ConfigurationError(f"{out} cannot be written: {error}") from error
    return len(rows_by_id), total
