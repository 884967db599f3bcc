"""Encodes sequences as the bodies of requests, in JSON: split by the limits of the server, and once for all options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from lengthwise.datasets.input_sequences import InputSequence
from lengthwise.errors import TooLarge

_OPTION_BYTES: Final = 4096  # room in a JSON body for its options
_BESIDE_STEPS: Final = ("id", "step_mask", "feature_mask", "static", "inputs", "state", "offset")  # optional fields
_SHARE_OF_QUEUE: Final = 4  # a request takes at most 1/4 of the queue, so that other callers leave room for it


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of one request, and the names of the models' features, as `GET /` shows them."""

    max_body_bytes: int = 16_777_216
    max_sequences: int = 1024
    max_queue_cost_steps: int = 1_000_000  # for all requests together
    names: Mapping[str, Mapping[str, Sequence[str] | None]] | None = None  # of features, by model and version

    def versions(self, model: str | None) -> Mapping[str, Sequence[str] | None]:
        """The names of the features by version of a model; None stands for the only model."""
        models = self.names or {}
        return next(iter(models.values())) if model is None and len(models) == 1 else models.get(model or "", {})

    def knows(self, model: str, versions: Set[str]) -> bool:
        """Whether the names of these versions are known, or the server shows no names at all."""
        return self.names is None or versions <= self.versions(model).keys()

    @classmethod
    def of(cls, document: Any) -> ServerLimits:
        """The limits in the answer to `GET /`; the defaults for what it lacks."""
        if not isinstance(document, Mapping) or not isinstance(document.get("limits"), Mapping):
            return cls()
        limits = document["limits"]
        numbers = {
            name: limits[name]
            for name in ("max_body_bytes", "max_sequences", "max_queue_cost_steps")
            if isinstance(limits.get(name), int) and limits[name] > 0
        }
        return cls(**numbers, names=document.get("names"))


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The body of one request, still without its options."""

    first: int  # index of its first sequence among the caller's
    count: int  # sequences
    content: bytes  # the sequences as JSON, separated by commas

    def with_options(self, options: Mapping[str, Any]) -> bytes:
        """The JSON of the request with these options."""
        return b'{"sequences":[%s]%s%s' % (self.content, b"," if options else b"", orjson.dumps(options)[1:])


@dataclass(frozen=True, slots=True)
class PreparedSequences:
    """Sequences whose bodies are encoded; they can be passed to `predict` any number of times."""

    bodies: tuple[RequestBody, ...]
    names: tuple[str, ...] | None = None  # of the features in the steps' order, if the sequences came with names

    def __len__(self) -> int:
        return sum(body.count for body in self.bodies)


def prepare(sequences: Sequence[InputSequence], limits: ServerLimits) -> PreparedSequences:
    """Encodes sequences in the JSON bodies of as many requests as the server's limits require.

    A body is full when it has the most sequences, steps or bytes that one request may have.

    Raises:
        TooLarge: A sequence is larger than a body.
    """
    most_bytes = limits.max_body_bytes - min(_OPTION_BYTES, limits.max_body_bytes // 2)
    most_steps = max(1, limits.max_queue_cost_steps // _SHARE_OF_QUEUE)
    bodies: list[RequestBody] = []
    texts: list[bytes] = []
    size = steps = 0  # of `texts`: bytes with commas, and steps of the sequences
    for index, sequence in enumerate(sequences):
        text, length = _text(sequence), len(sequence.steps)
        if len(text) > most_bytes:
            raise TooLarge(f"sequence {index} takes {len(text)} bytes; a body of this server may have {most_bytes}")
        is_full = len(texts) == limits.max_sequences or size + len(text) + 1 > most_bytes
        if texts and (is_full or steps + length > most_steps):
            bodies.append(RequestBody(index - len(texts), len(texts), b",".join(texts)))
            texts, size, steps = [], 0, 0
        texts.append(text)
        size += len(text) + 1
        steps += length
    if texts:
        bodies.append(RequestBody(len(sequences) - len(texts), len(texts), b",".join(texts)))
    return PreparedSequences(tuple(bodies), next((entry.names for entry in sequences if entry.names is not None), None))


def _text(sequence: InputSequence) -> bytes:
    """A sequence as JSON. orjson writes NaN as null, a missing value; infinite numbers were refused before."""
    fields = {name: value for name in _BESIDE_STEPS if (value := getattr(sequence, name)) is not None}
    if sequence.inputs is not None:  # the steps are one of them
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    steps = np.ascontiguousarray(sequence.steps)
    return orjson.dumps({**fields, "steps": steps} if fields else steps, option=orjson.OPT_SERIALIZE_NUMPY)
