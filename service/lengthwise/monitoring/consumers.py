"""The consumers of answered calls: one records calls, another checks answers. What a consumer is, and what it gets."""

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
    queue_seconds: float  # that its sequences waited
    inference_seconds: float
    memory_bytes: int  # of its sequences


class Consumer:
    """Uses a sample of the answered calls: a random `share` of them (0 to 1).

    `name` is the value of the label `consumer` in its metrics.
    """

    name: str
    share: float

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Uses calls; runs in the consumer's own thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends its work; nothing is consumed afterwards."""

    def families(self) -> Iterator[Family]:
        """The metrics of this consumer; none by default."""
        return iter(())
