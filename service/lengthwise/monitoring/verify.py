"""The check of answers: a sample is computed again, alone, and must have the same bits, or be within the tolerance."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

_LOGGED_SECONDS: Final = 60.0  # without a further log line about mismatches


class AnswerCheck(Consumer):
    """Computes a share of the answers again, each sequence alone."""

    name = "verify"

    def __init__(self, share: float) -> None:
        self.share = share
        self._checked: dict[tuple[str, ...], int] = {}
        self._mismatches: dict[tuple[str, ...], int] = {}
        self._logged = float("-inf")

    def wants(self, call: AnsweredCall) -> bool:
        """Whether a call can be checked: its model runs on the CPU, where a further run disturbs no device memory."""
        return not call.model.model.session.bound

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Checks calls; of a call with many sequences the first only."""
        for call in calls:
            served, item, sent = call.model, call.items[0], call.answers[0]
            if sent.windows is not None:  # of several runs
                continue
            key = served.metrics.labels
            alone = served.model.answer(served.queue.padded([item.steps]), sent.attention is not None)[0]
            self._checked[key] = self._checked.get(key, 0) + 1
            promise = served.model.promise
            tolerance = 0.0 if promise is None else promise.tolerance
            if alone is not None and _agree(sent, alone, tolerance):
                continue
            self._mismatches[key] = self._mismatches.get(key, 0) + 1
            if time.monotonic() - self._logged > _LOGGED_SECONDS:
                self._logged = time.monotonic()
                log.error(
                    "%s: the answer to request %s differs when its sequence of %d steps runs unbatched",
                    served.manifest.key,
                    call.request_id,
                    len(item.steps),
                )

    def families(self) -> Iterator[Family]:
        """The counters of answers that were checked, and of those that differed."""
        for name, help_, counts in (
            ("verified_answers", "Answers that were computed again, alone.", self._checked),
            ("verify_mismatches", "Of these, answers that were not the same alone.", self._mismatches),
        ):
            samples = [(key, float(counts.get(key, 0))) for key in list(self._checked)]
            yield Family("counter", name, help_, ("model", "version"), samples)


def _agree(sent: Answer, alone: Answer, tolerance: float) -> bool:
    pairs = [(sent.probabilities, alone.probabilities)]
    if sent.attention is not None and alone.attention is not None:
        pairs.append((sent.attention, alone.attention))
    if tolerance == 0:
        return all(one.tobytes() == other.tobytes() for one, other in pairs)
    return all(one.shape == other.shape and np.abs(one - other).max() <= tolerance for one, other in pairs)
