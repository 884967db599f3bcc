"""The consumers of answered calls: what a consumer is, what it gets, and the one that checks answers.

`AnswerCheck` computes a sample of the answers once more, each sequence unbatched, and compares them with those that
were sent. `recorder` has the other consumer, which records calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from lengthwise.decoding.calls import Item
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

_LOGGED_SECONDS: Final = 60.0  # between two log lines about mismatches


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


class AnswerCheck(Consumer):
    """Computes a share of the answers again, each sequence unbatched, and counts those that differ."""

    name = "verify"

    def __init__(self, share: float) -> None:
        self.share = share
        self._logged = float("-inf")  # when a mismatch was logged last (`time.monotonic`)

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Checks the answer to the first sequence of each call, and counts and logs a mismatch.

        A mismatch is an answer that differs, or is not finite, when it is computed again. A sequence that was answered
        in several windows is left out.
        """
        for call in calls:
            served, item, sent = call.model, call.items[0], call.answers[0]
            if sent.windows is not None:
                continue
            unbatched = served.model.answer(served.queue.padded([item.steps]), sent.attention is not None)[0]
            served.metrics.count("verified_answers")
            promise = served.model.promise
            if unbatched is not None and _agree(sent, unbatched, 0.0 if promise is None else promise.tolerance):
                continue
            served.metrics.count("verify_mismatches")
            if time.monotonic() - self._logged > _LOGGED_SECONDS:
                self._logged = time.monotonic()
                log.error(
                    "%s: the answer to request %s differs when its sequence of %d steps runs unbatched",
                    served.manifest.key,
                    call.request_id,
                    len(item.steps),
                )


def _agree(sent: Answer, unbatched: Answer, tolerance: float) -> bool:
    """Whether two answers agree: they have the same bits if the tolerance is 0; otherwise they differ by at most it."""
    pairs = [(sent.probabilities, unbatched.probabilities)]
    if sent.attention is not None and unbatched.attention is not None:
        pairs.append((sent.attention, unbatched.attention))
    if tolerance == 0:
        return all(first.tobytes() == second.tobytes() for first, second in pairs)
    return all(first.shape == second.shape and np.abs(first - second).max() <= tolerance for first, second in pairs)
