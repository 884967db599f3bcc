"""Computes a sample of the answers once more, each sequence unbatched, while the service is at rest.

`AnswerCheck` compares with the answer that was sent: the same bits, or within the tolerance that is guaranteed.
`ShadowRuns` runs another version, the *candidate* (or shadow), and compares it with the *primary*, which answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from lengthwise.decoding.calls import why_refused
from lengthwise.errors import RequestError
from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.monitoring.drift import answered_classes
from lengthwise.repository.registry import ServedModel
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family, Kind, OverWorkers
from lengthwise.versions import Key

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
        """Checks the first sequence of each call; a sequence that was answered in several windows is left out."""
        for call in calls:
            served, item, sent = call.model, call.items[0], call.answers[0]
            if sent.windows is not None:
                continue
            key = served.metrics.labels
            unbatched = served.model.answer(served.queue.padded([item.steps]), sent.attention is not None)[0]
            self._checked[key] += 1  # an answer of None is not finite: a mismatch
            promise = served.model.promise
            if unbatched is not None and _agree(sent, unbatched, 0.0 if promise is None else promise.tolerance):
                continue
            self._mismatches[key] += 1  # and, seldom, a line in the log
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
    """Whether two answers have the same bits; or, if the tolerance is above 0, differ by at most the tolerance."""
    pairs = [(sent.probabilities, unbatched.probabilities)]
    if sent.attention is not None and unbatched.attention is not None:
        pairs.append((sent.attention, unbatched.attention))
    if tolerance == 0:
        return all(first.tobytes() == second.tobytes() for first, second in pairs)
    return all(first.shape == second.shape and np.abs(first - second).max() <= tolerance for first, second in pairs)


@dataclass(slots=True)
class ShadowComparison:
    """Counts how often the candidate agrees with one served version, the primary."""

    sequences: int = 0  # answered by both
    refused: int = 0  # by the candidate, or its answer was not finite
    disagreements: int = 0  # sequences with other labels
    largest_difference: float = 0.0  # of a probability, if both have the same labels
    seconds: float = 0.0  # measured ones of the candidate, each sequence unbatched
    primary_seconds: float = 0.0  # predicted ones of the primary, likewise
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)  # by the labels of primary and candidate

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON object, for the page of comparisons; `cost_ratio` is candidate over primary."""
        return {
            "sequences": self.sequences,
            "refused": self.refused,
            "disagreements": self.disagreements,
            "largest_difference": self.largest_difference,
            "cost_ratio": self.seconds / self.primary_seconds if self.primary_seconds else None,
            "answers": [
                {"primary": primary, "candidate": candidate, "sequences": count}
                for (primary, candidate), count in self.confusion.most_common()
            ],
        }


class ShadowRuns(Consumer):
    """Runs the candidate on sampled calls of other versions of its model, and counts the comparisons by version.

    `candidate` returns the served candidate, or raises a RequestError; `key` is its name and version.
    """

    name = "shadow"

    def __init__(self, candidate: Callable[[], ServedModel], key: Key, share: float) -> None:
        self.share = share
        self.key = key
        self._candidate = candidate
        self._comparisons: dict[str, ShadowComparison] = {}  # by version of the primary
        self._lock = threading.Lock()  # of the comparisons
        self._absent = False  # whether the candidate was not served at the last look

    def wants(self, call: AnsweredCall) -> bool:
        """Whether another version of the candidate's model answered."""
        manifest = call.model.manifest
        return manifest.name == self.key.name and manifest.version != self.key.version

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Compares the candidate's answer to the first sequence of each call; does nothing while it is not served."""
        served = self.served()
        if served is None:
            return
        for call in calls:
            self._compare(call, served)

    def served(self) -> ServedModel | None:
        """The candidate; None while it is not served, which is logged once."""
        try:
            served = self._candidate()
        except RequestError as error:
            if not self._absent:
                log.warning("the shadow %s is not served, so nothing is compared: %s", self.key, error.detail)
            self._absent = True
            return None
        self._absent = False
        return served

    def _compare(self, call: AnsweredCall, served: ServedModel) -> None:
        """Runs the candidate on the first sequence of a call, and counts the comparison with the answer that was sent.

        A sequence that was answered in several windows is left out, and a candidate that runs on a device.
        """
        item, sent = call.items[0], call.answers[0]
        primary, candidate = call.model.manifest, served.manifest
        if sent.windows is not None or served.model.session.bound:
            return
        is_refused = why_refused(item.steps, candidate) is not None or len(item.steps) > candidate.max_length
        clock = served.queue.cost.clock  # of the predictions: processor time, as this thread yields to others
        started = clock()
        candidate_answer = None if is_refused else served.model.answer(served.queue.padded([item.steps]), False)[0]
        seconds = clock() - started
        with self._lock:
            comparison = self._comparisons.setdefault(str(primary.version), ShadowComparison())
            if candidate_answer is None:
                comparison.refused += 1
                return
            primary_labels = ", ".join(primary.labels[index] for index in answered_classes(sent, primary))
            candidate_labels = ", ".join(
                candidate.labels[index] for index in answered_classes(candidate_answer, candidate)
            )
            comparison.sequences += 1
            comparison.seconds += seconds
            comparison.primary_seconds += call.model.queue.cost.predict(1, call.model.queue.width_of(len(item.steps)))
            comparison.disagreements += primary_labels != candidate_labels
            if primary.task == candidate.task == "single-label":
                comparison.confusion[primary_labels, candidate_labels] += 1
            if primary.labels == candidate.labels and sent.probabilities.shape == candidate_answer.probabilities.shape:
                difference = float(np.abs(sent.probabilities - candidate_answer.probabilities).max())
                comparison.largest_difference = max(comparison.largest_difference, difference)

    def as_json(self) -> dict[str, Any]:
        """The comparisons of all versions as a JSON object, for the page of comparisons."""
        with self._lock:
            return {
                "candidate": str(self.key),
                "served": not self._absent,
                "share": self.share,
                "versions": {version: comparison.as_json() for version, comparison in self._comparisons.items()},
            }

    def families(self) -> Iterator[Family]:
        """Yields the metrics of the comparison with each version."""
        labels = ("model", "version", "candidate")
        with self._lock:
            comparisons = [
                ((self.key.name, version, str(self.key.version)), replace(comparison))
                for version, comparison in self._comparisons.items()
            ]
        for kind, over_workers, name, help_, attribute in _FAMILIES:
            samples = [(values, float(getattr(comparison, attribute))) for values, comparison in comparisons]
            yield Family(kind, over_workers, name, help_, labels, samples)


_FAMILIES: Final[tuple[tuple[Kind, OverWorkers, str, str, str], ...]] = (
    ("counter", "sum", "shadow_sequences", "Sequences that a shadow answered too.", "sequences"),
    ("counter", "sum", "shadow_refused", "Sequences that a shadow does not accept or cannot answer.", "refused"),
    ("counter", "sum", "shadow_disagreements", "Sequences to which a shadow gave another answer.", "disagreements"),
    ("counter", "sum", "shadow_seconds", "Seconds that a shadow took, each sequence alone.", "seconds"),
    ("counter", "sum", "shadow_primary_seconds", "Predicted seconds of who answered, alone.", "primary_seconds"),
    (
        "gauge",
        "largest",
        "shadow_largest_difference",
        "Largest difference of a probability so far.",
        "largest_difference",
    ),
)
