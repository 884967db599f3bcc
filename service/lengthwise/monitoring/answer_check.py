"""Computes a sample of the answers once more, each sequence unbatched, and compares them with those that were sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.runtime.answers import Answer

log = logging.getLogger("lengthwise.monitoring")

_LOGGED_SECONDS: Final = 60.0  # between two log lines about mismatches


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
