"""Arrow streams for tests: the sequences of a JSON body as a stream, and calls and refusals that can be compared."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from lengthwise.decoding import arrow_body
from lengthwise.decoding.calls import Call, Problems
from lengthwise.decoding.options import CallOptions
from lengthwise.errors import InvalidRequest, RequestError
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import OneModel

ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Form:
    """How sequences are written."""

    number: Any = field(default_factory=pa.float64)
    step: str = "list"
    large: bool = False
    nan: bool = False
    batch_rows: int = 1000


def stream(sequences: Sequence[Mapping[str, Any]], form: Form | None = None, **options: Any) -> bytes:
    """The sequences of a JSON body, each an object, as a stream."""
    return written(batches(sequences, form or Form()), **options)


def batches(sequences: Sequence[Mapping[str, Any]], form: Form) -> list[Any]:
    """The sequences as record batches."""
    steps = [None if one["steps"] is None else [_step(step, form) for step in one["steps"]] for one in sequences]
    columns = {"steps": pa.array(steps, _kind([step for row in steps for step in row or ()], form))}
    if any("id" in one for one in sequences):
        columns["id"] = pa.array([one.get("id") for one in sequences], pa.string())
    for name in ("step_mask", "feature_mask"):
        if any(name in one for one in sequences):
            columns[name] = pa.array([one.get(name) for one in sequences], pa.list_(pa.bool_()))
    table = pa.table(columns)
    return list(table.to_batches(max_chunksize=form.batch_rows)) or [pa.RecordBatch.from_pylist([], table.schema)]


def _kind(steps: list[Any], form: Form) -> Any:
    inner = form.number
    if form.step == "fixed":
        inner = pa.list_(inner, next(len(step) for step in steps if step is not None))
    elif form.step != "bare":
        inner = (pa.large_list if form.step == "large_list" else pa.list_)(inner)
    return (pa.large_list if form.large else pa.list_)(inner)


def _step(step: Any, form: Form) -> Any:
    if isinstance(step, list):
        return [_number(value, form) for value in step]
    return _number(step, form) if form.step == "bare" else step


def _number(value: Any, form: Form) -> Any:
    return float("nan") if value is None and form.nan else value


def written(found: Sequence[Any], **options: Any) -> bytes:
    """Record batches as a stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in found:
            writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def read(body: bytes, manifest: Manifest, *, max_sequences: int = 1000, quick: bool = False) -> Call | None:
    """The call of a stream for one model."""
    catalog: Any = OneModel(manifest)
    return arrow_body.read(body, CallOptions(), Problems(), catalog.find, max_sequences=max_sequences, quick=quick)


def outcome(read_it: Callable[[], Call | None]) -> Any:
    """What comes of a body, as a value: its items to the bit, or everything that is said of it."""
    try:
        call = read_it()
    except InvalidRequest as error:
        return "wrong", [(one.pointer, one.detail) for one in error.problems], error.total
    except RequestError as error:
        return type(error).__name__, error.detail
    return None if call is None else items(call)


def items(call: Call) -> Any:
    """The items of a call as a value that is equal only to that of an equal call."""
    return [
        (
            str(item.steps.dtype),
            item.steps.shape,
            np.where(np.isnan(item.steps), np.float32(np.nan), item.steps).tobytes()
            if item.steps.dtype == np.float32
            else item.steps.tobytes(),
            item.sent_steps,
            None if item.kept_places is None else item.kept_places.tolist(),
            item.id,
        )
        for item in call.items
    ]


def table_of(body: bytes) -> Any:
    """A stream as a table."""
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def with_buffer(batch: Any, buffer: int, values: Sequence[int], element: str = "i") -> bytes:
    """A stream whose record batch has other numbers in one of its buffers: offsets, for example."""
    body = bytearray(written([batch]))
    buffers = [one for one in batch.column(0).buffers() if one is not None]
    at = bytes(body).rindex(buffers[buffer].to_pybytes())
    struct.pack_into(f"<{len(values)}{element}", body, at, *values)
    return bytes(body)
