"""Computes a sample of the answers once more, each sequence unbatched, and compares them with those that were sent."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

_LOGGED_SECONDS: Final = 60.0  # between two log lines about mismatches


class AnswerCheck(Consumer):
    """Computes a share of the answers again, each sequence unbatched, and counts those that differ."""

    name = "verify"

    def __init__(self, share: float) -> None:
        self.share = share
        # By model and version
        self._checked: Counter[tuple[str, str]] = Counter()
        self._mismatches: Counter[tuple[str, str]] = Counter()
        self._logged = float("-inf")  # when a mismatch was logged last (`time.monotonic`)

    def wants(self, call: AnsweredCall) -> bool:
        """Whether a call can be checked: its model runs on the CPU, where one more run disturbs no device memory."""
        return not call.model.model.session.bound

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Checks the answer to the first sequence of each call, and counts and logs a mismatch.

        A mismatch is an answer that differs, or is not finite, when it is computed again. A sequence that was answered
        in several windows is left out.
        """
        for call in calls:
            served, item, sent = call.model, call.items[0], call.answers[0]
            if sent.windows is not None:
                continue
            key = served.metrics.labels
            unbatched = served.model.answer(served.queue.padded([item.steps]), sent.attention is not None)[0]
            self._checked[key] += 1
            promise = served.model.promise
            if unbatched is not None and _agree(sent, unbatched, 0.0 if promise is None else promise.tolerance):
                continue
            self._mismatches[key] += 1
            if time.monotonic() - self._logged > _LOGGED_SECONDS:
                self._logged = time.monotonic()
                log.error(
                    "%s: the answer to request %s differs when its sequence of %d steps runs unbatched",
                    served.manifest.key,
                    call.request_id,
                    len(item.steps),
                )

    def families(self) -> Iterator[Family]:
        """Yields the counters of checked answers, and of answers that differed."""
        for name, help_, counts in (
            ("verified_answers", "Answers that were computed again, alone.", self._checked),
            ("verify_mismatches", "Of these, answers that were not the same alone.", self._mismatches),
        ):
            samples = [(key, counts[key]) for key in list(self._checked)]
            yield Family("counter", "sum", name, help_, ("model", "version"), samples)


def _agree(sent: Answer, unbatched: Answer, tolerance: float) -> bool:
    """Whether two answers agree: they have the same bits if the tolerance is 0; otherwise they differ by at most it."""
    pairs = [(sent.probabilities, unbatched.probabilities)]
    if sent.attention is not None and unbatched.attention is not None:
        pairs.append((sent.attention, unbatched.attention))
    if tolerance == 0:
        return all(first.tobytes() == second.tobytes() for first, second in pairs)
    return all(first.shape == second.shape and np.abs(first - second).max() <= tolerance for first, second in pairs)
