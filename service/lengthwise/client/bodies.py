"""Sequences to the bodies of requests, as JSON or Arrow, split by the server's limits, encoded once without options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal
from urllib.parse import urlencode

import numpy as np
import orjson

from lengthwise.datasets.given import GivenSequence
from lengthwise.errors import ConfigurationError, TooLarge, how_to_install

Encoding = Literal["auto", "json", "arrow"]

ARROW: Final = "application/vnd.apache.arrow.stream"
JSON: Final = "application/json"
_WORTH_ARROW_NUMBERS: Final = 4096  # up to so many, JSON takes about as long as an Arrow stream
_OPTION_BYTES: Final = 4096  # room in a JSON body for its options
_BESIDE_STEPS: Final = ("id", "step_mask", "feature_mask")  # of a sequence, where it has them
_SHARE_OF_QUEUE: Final = 4  # a request takes at most this part, so that other callers do not stop it


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one request may have."""

    max_body_bytes: int = 16_777_216
    max_sequences: int = 1024
    max_queue_cost_steps: int = 1_000_000  # for all requests together
    media_types: tuple[str, ...] = (JSON,)
    names: Mapping[str, Mapping[str, Sequence[str] | None]] | None = None  # by model and version, if the server says

    def versions(self, model: str | None) -> Mapping[str, Sequence[str] | None]:
        """The names of the features of each version of a model, by default of the only one."""
        models = self.names or {}
        return next(iter(models.values())) if model is None and len(models) == 1 else models.get(model or "", {})

    def knows(self, model: str, versions: Set[str]) -> bool:
        """Whether the names of these versions were said, or the server says none at all."""
        return self.names is None or versions <= self.versions(model).keys()

    @classmethod
    def of(cls, document: Any) -> ServerLimits:
        """The limits in the answer to `GET /`; the defaults where it has none."""
        if not isinstance(document, Mapping) or not isinstance(document.get("limits"), Mapping):
            return cls()
        limits = document["limits"]
        numbers = {
            name: limits[name]
            for name in ("max_body_bytes", "max_sequences", "max_queue_cost_steps")
            if isinstance(limits.get(name), int) and limits[name] > 0
        }
        media_types = tuple(map(str, document.get("media_types", (JSON,))))
        return cls(**numbers, media_types=media_types, names=document.get("names"))


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The body of one request, without its options."""

    first: int  # index of its first sequence among the caller's
    count: int
    content: bytes
    media_type: str

    def with_options(self, options: Mapping[str, Any]) -> tuple[str, bytes]:
        """The path and the content of the request with these options."""
        if self.media_type == ARROW:
            texts = {name: ",".join(value) if name == "outputs" else value for name, value in options.items()}
            return f"/predict?{urlencode(texts)}" if texts else "/predict", self.content
        fields = orjson.dumps(options)[1:]
        return "/predict", b'{"sequences":[%s]%s%s' % (self.content, b"," if options else b"", fields)


@dataclass(frozen=True, slots=True)
class PreparedSequences:
    """Sequences whose bodies are encoded; `predict` takes them any number of times."""

    bodies: tuple[RequestBody, ...]
    names: tuple[str, ...] | None = None  # of the features, in their order, if the sequences came with names

    def __len__(self) -> int:
        return sum(body.count for body in self.bodies)


def prepare(sequences: Sequence[GivenSequence], limits: ServerLimits, encoding: Encoding) -> PreparedSequences:
    """Encodes sequences, in as many bodies as the limits require; TooLarge for one larger than a body."""
    bodies: list[RequestBody] = []
    as_arrow = _uses_arrow(sequences, limits, encoding)
    for first, count in _parts(sequences, limits):
        part = sequences[first : first + count]
        bodies += _arrow_bodies(part, first, limits) if as_arrow else _json_bodies(part, first, limits)
    return PreparedSequences(tuple(bodies), next((one.names for one in sequences if one.names is not None), None))


def _parts(sequences: Sequence[GivenSequence], limits: ServerLimits) -> Iterator[tuple[int, int]]:
    """Parts of the sequences within the limits of sequences and steps: index of the first, and their number."""
    most_steps = max(1, limits.max_queue_cost_steps // _SHARE_OF_QUEUE)
    first = steps = 0
    for place, sequence in enumerate(sequences):
        length = len(sequence.steps)
        if place > first and (place - first == limits.max_sequences or steps + length > most_steps):
            yield first, place - first
            first, steps = place, 0
        steps += length
    if sequences:
        yield first, len(sequences) - first


def _uses_arrow(sequences: Sequence[GivenSequence], limits: ServerLimits, encoding: Encoding) -> bool:
    if encoding == "json" or not sequences:
        return False
    why = None
    if find_spec("pyarrow") is None:
        why = f"pyarrow is not installed: {how_to_install('arrow')}"
    elif ARROW not in limits.media_types:
        why = "the server reads no Arrow streams; it needs the extra 'arrow'"
    elif len({(one.steps.dtype, one.steps.shape[1:]) for one in sequences}) > 1:
        why = "the sequences have different numbers of features, or different types"
    elif sequences[0].steps.ndim == 2 and not sequences[0].steps.shape[1]:
        why = "the steps have no feature"
    if encoding == "arrow" and why is not None:
        raise ConfigurationError(f"encoding='arrow' cannot be used: {why}")
    return why is None and (encoding == "arrow" or sum(one.steps.size for one in sequences) >= _WORTH_ARROW_NUMBERS)


def _json_bodies(sequences: Sequence[GivenSequence], first: int, limits: ServerLimits) -> Iterator[RequestBody]:
    most = limits.max_body_bytes - min(_OPTION_BYTES, limits.max_body_bytes // 2)
    texts: list[bytes] = []
    size = 0
    for place, sequence in enumerate(sequences, first):
        fields = {name: value for name in _BESIDE_STEPS if (value := getattr(sequence, name)) is not None}
        steps = np.ascontiguousarray(sequence.steps)
        # orjson writes NaN as null, which is a missing value; infinite numbers were rejected.
        text = orjson.dumps({**fields, "steps": steps} if fields else steps, option=orjson.OPT_SERIALIZE_NUMPY)
        _check_size(len(text), most, place)
        if texts and size + len(text) + 1 > most:
            yield RequestBody(place - len(texts), len(texts), b",".join(texts), JSON)
            texts, size = [], 0
        texts.append(text)
        size += len(text) + 1
    yield RequestBody(first + len(sequences) - len(texts), len(texts), b",".join(texts), JSON)


def _arrow_bodies(sequences: Sequence[GivenSequence], first: int, limits: ServerLimits) -> Iterator[RequestBody]:
    """The bodies of sequences as Arrow streams; a stream that is too large is split into halves."""
    content = _arrow(sequences)
    if len(content) <= limits.max_body_bytes:
        yield RequestBody(first, len(sequences), content, ARROW)
        return
    if len(sequences) == 1:
        _check_size(len(content), limits.max_body_bytes, first)
    half = len(sequences) // 2
    yield from _arrow_bodies(sequences[:half], first, limits)
    yield from _arrow_bodies(sequences[half:], first + half, limits)


def _arrow(sequences: Sequence[GivenSequence]) -> bytes:
    import pyarrow as pa

    offsets = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum([len(one.steps) for one in sequences], out=offsets[1:])
    numbers = sequences[0].steps if len(sequences) == 1 else np.concatenate([one.steps for one in sequences])
    values = pa.array(np.ascontiguousarray(numbers).reshape(-1))
    if numbers.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, numbers.shape[1])
    columns = {"steps": pa.ListArray.from_arrays(offsets, values)}
    for name in _BESIDE_STEPS:
        cells = [getattr(one, name) for one in sequences]
        if any(cell is not None for cell in cells):
            columns[name] = pa.array(cells, pa.string() if name == "id" else pa.list_(pa.bool_()))
    batch = pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _check_size(size: int, most: int, index: int) -> None:
    if size > most:
        raise TooLarge(f"sequence {index} takes {size} bytes; a body of this server may have {most}")
