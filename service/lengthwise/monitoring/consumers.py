"""What a consumer of answered calls is, and what it gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lengthwise.decoding.calls import Item
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family


class AnsweredCall(NamedTuple):
    """One call with its answers."""

    model: ServedModel
    items: Sequence[Item]
    answers: Sequence[Answer]
    request_id: str
    arrived: float  # in seconds since the epoch
    queue_seconds: float
    inference_seconds: float
    memory_bytes: int  # memory of its sequences


class Consumer:
    """Consumes a `share` of the answered calls; `name` is the label `consumer` of its metrics."""

    name: str
    share: float

    def wants(self, call: AnsweredCall) -> bool:
        """Whether a call is of use for it. Called in the thread that answers: it must be fast."""
        return True

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Consumes calls."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends its work; nothing is consumed afterwards."""

    def families(self) -> Iterator[Family]:
        """The metrics of this consumer; none by default."""
        return iter(())
