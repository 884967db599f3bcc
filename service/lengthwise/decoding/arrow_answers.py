"""The answers of a call as an Arrow stream: a record batch of the fields in JSON, with null for one that is absent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.decoding.arrow_stream import load
from lengthwise.decoding.calls import Call, Item
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.manifest import Manifest

_END: Final = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream: a message of no bytes


def encode(call: Call, answers: list[Answer]) -> bytes:
    """The body of a 200."""
    pa = load()
    manifest = call.model.manifest
    columns = _columns(pa, call, answers, manifest)
    types = tuple(column.type for column in columns.values())
    schema, head = _schema(manifest.name, manifest.version, manifest.labels, (*columns,), types)
    batch = pa.RecordBatch.from_arrays([*columns.values()], schema=schema)
    return b"".join((head, batch.serialize(), _END))


@lru_cache(maxsize=64)
def _schema(
    name: str, version: int, labels: tuple[str, ...], names: tuple[str, ...], types: tuple[Any, ...]
) -> tuple[Any, bytes]:
    """The schema of an answer, and its message, with which the stream begins."""
    pa = load()
    metadata = {"model": name, "version": str(version), "labels": orjson.dumps(labels)}
    schema = pa.schema([*zip(names, types, strict=True)], metadata=metadata)
    return schema, schema.serialize().to_pybytes()


def _columns(pa: Any, call: Call, answers: list[Answer], manifest: Manifest) -> dict[str, Any]:
    items, labels = call.items, manifest.labels
    columns: dict[str, Any] = {}
    if any(item.id is not None for item in items):
        columns["id"] = pa.array([item.id for item in items], pa.string())
    if manifest.task == "per-step":
        columns |= _step_columns(pa, items, answers, manifest)
    else:
        probabilities = np.stack([answer.probabilities for answer in answers])
        if manifest.task == "single-label":
            best = [answer.best for answer in answers]
            columns["label"] = pa.array([labels[place] for place in best], pa.string())
            columns["score"] = pa.array(probabilities[np.arange(len(best)), best])
        else:
            assigned = [np.flatnonzero(row >= manifest.threshold) for row in probabilities]
            columns["assigned"] = pa.array(
                [[labels[place] for place in places] for places in assigned], pa.list_(pa.string())
            )
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(probabilities.reshape(-1), manifest.classes)
    columns["length"] = pa.array([len(item.steps) for item in items], pa.int32())
    if call.attention:
        offsets, places, left_out = _places(items)
        weights = np.zeros(len(left_out), dtype=np.float32)
        weights[places] = np.concatenate([answer.attention for answer in answers if answer.attention is not None])
        columns["attention"] = pa.ListArray.from_arrays(offsets, pa.array(weights))
    if any(answer.windows is not None for answer in answers):
        columns["windows"] = _windows(pa, answers)
    return columns


def _step_columns(pa: Any, items: Sequence[Item], answers: list[Answer], manifest: Manifest) -> dict[str, Any]:
    offsets, places, left_out = _places(items)
    stacked = np.concatenate([answer.probabilities for answer in answers])
    probabilities = np.zeros((len(left_out), manifest.classes), dtype=np.float32)
    probabilities[places] = stacked
    scores, best = probabilities.max(axis=1), probabilities.argmax(axis=1)
    step_labels = pa.array(manifest.labels, pa.string()).take(pa.array(best, mask=left_out))
    step_probabilities = pa.FixedSizeListArray.from_arrays(
        probabilities.reshape(-1), manifest.classes, mask=pa.array(left_out)
    )
    return {
        "step_labels": pa.ListArray.from_arrays(offsets, step_labels),
        "step_scores": pa.ListArray.from_arrays(offsets, pa.array(scores, mask=left_out)),
        "probabilities": pa.ListArray.from_arrays(offsets, step_probabilities),
    }


def _places(items: Sequence[Item]) -> tuple[NDArray[np.int32], NDArray[np.intp], NDArray[np.bool_]]:
    """The offsets of the rows of a list column, the places of the kept steps, and whether each step was left out."""
    offsets = np.zeros(len(items) + 1, dtype=np.int32)
    np.cumsum([item.sent_steps for item in items], out=offsets[1:])
    starts: list[int] = offsets.tolist()
    places = np.concatenate(
        [
            np.arange(start, start + item.sent_steps) if item.kept_places is None else start + item.kept_places
            for start, item in zip(starts, items, strict=False)
        ]
    )
    left_out = np.ones(starts[-1], dtype=np.bool_)
    left_out[places] = False
    return offsets, places, left_out


def _windows(pa: Any, answers: list[Answer]) -> Any:
    """The windows of each sequence; null for one that was not split."""
    fields = [("start", pa.int32()), ("length", pa.int32())]
    if any("probabilities" in window for answer in answers for window in answer.windows or ()):
        fields.append(("probabilities", pa.list_(pa.float32())))
    rows = [
        None
        if answer.windows is None
        else [{name: np.asarray(value).tolist() for name, value in window.items()} for window in answer.windows]
        for answer in answers
    ]
    return pa.array(rows, pa.list_(pa.struct(fields)))
