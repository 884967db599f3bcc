"""What computes a sample of the answers once more, each sequence alone and while no caller waits.

The check of answers: the same bits, or within the tolerance. A shadow: a candidate's answers beside those that were
sent.
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

_LOGGED_SECONDS: Final = 60.0  # without a further log line about mismatches


class AnswerCheck(Consumer):
    """Computes a share of the answers again, each sequence alone."""

    name = "verify"

    def __init__(self, share: float) -> None:
        self.share = share
        self._checked: Counter[tuple[str, str]] = Counter()
        self._mismatches: Counter[tuple[str, str]] = Counter()
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
            self._checked[key] += 1
            promise = served.model.promise
            if alone is not None and _agree(sent, alone, 0.0 if promise is None else promise.tolerance):
                continue
            self._mismatches[key] += 1
            if time.monotonic() - self._logged > _LOGGED_SECONDS:
                self._logged = time.monotonic()
                message = "%s: the answer to request %s differs when its sequence of %d steps runs unbatched"
                log.error(message, served.manifest.key, call.request_id, len(item.steps))

    def families(self) -> Iterator[Family]:
        """The counters of checked answers, and of answers that differed."""
        for name, help_, counts in (
            ("verified_answers", "Answers that were computed again, alone.", self._checked),
            ("verify_mismatches", "Of these, answers that were not the same alone.", self._mismatches),
        ):
            samples = [(key, counts[key]) for key in list(self._checked)]
            yield Family("counter", "sum", name, help_, ("model", "version"), samples)


def _agree(sent: Answer, alone: Answer, tolerance: float) -> bool:
    """Whether two answers have the same bits, or for a tolerance above 0 differ by at most that."""
    pairs = [(sent.probabilities, alone.probabilities)]
    if sent.attention is not None and alone.attention is not None:
        pairs.append((sent.attention, alone.attention))
    if tolerance == 0:
        return all(one.tobytes() == other.tobytes() for one, other in pairs)
    return all(one.shape == other.shape and np.abs(one - other).max() <= tolerance for one, other in pairs)


@dataclass(slots=True)
class ShadowComparison:
    """Counts how often the answers of the candidate agree with those of one served version."""

    sequences: int = 0  # answered by both
    refused: int = 0  # or with an answer that is not finite
    disagreements: int = 0
    largest_difference: float = 0.0  # of a probability, of equal labels only
    seconds: float = 0.0  # of the candidate, each sequence alone
    primary_seconds: float = 0.0  # predicted, likewise
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)  # how often which answer stood against which

    def as_json(self) -> dict[str, Any]:
        """For the page of comparisons."""
        return {
            "sequences": self.sequences,
            "refused": self.refused,
            "disagreements": self.disagreements,
            "largest_difference": self.largest_difference,
            "cost_ratio": self.seconds / self.primary_seconds if self.primary_seconds else None,
            "answers": [
                {"primary": one, "candidate": other, "sequences": count}
                for (one, other), count in self.confusion.most_common()
            ],
        }


class ShadowRuns(Consumer):
    """Runs a candidate on sampled calls of other versions of the same name."""

    name = "shadow"

    def __init__(self, candidate: Callable[[], ServedModel], key: Key, share: float) -> None:
        self.share = share
        self.key = key
        self._candidate = candidate
        self._comparisons: dict[str, ShadowComparison] = {}
        self._lock = threading.Lock()
        self._absent = False

    def wants(self, call: AnsweredCall) -> bool:
        """Whether another version of the candidate's name answered, in one run for each sequence."""
        manifest = call.model.manifest
        return manifest.name == self.key.name and manifest.version != self.key.version

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Answers calls by the candidate and compares; of a call with many sequences the first only."""
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
        """Runs the first sequence of a call through the shadow, and compares the answers."""
        item, sent = call.items[0], call.answers[0]
        primary, candidate = call.model.manifest, served.manifest
        if sent.windows is not None or served.model.session.bound:
            return
        refused = why_refused(item.steps, candidate) is not None or len(item.steps) > candidate.max_length
        clock = served.queue.cost.clock  # of the predictions, too: this thread gives way to others while it runs
        started = clock()
        alone = None if refused else served.model.answer(served.queue.padded([item.steps]), False)[0]
        seconds = clock() - started
        with self._lock:
            comparison = self._comparisons.setdefault(str(primary.version), ShadowComparison())
            if alone is None:
                comparison.refused += 1
                return
            before = ", ".join(primary.labels[index] for index in answered_classes(sent, primary))
            after = ", ".join(candidate.labels[index] for index in answered_classes(alone, candidate))
            comparison.sequences += 1
            comparison.seconds += seconds
            comparison.primary_seconds += call.model.queue.cost.predict(1, call.model.queue.width_of(len(item.steps)))
            comparison.disagreements += before != after
            if primary.task == candidate.task == "single-label":
                comparison.confusion[before, after] += 1
            if primary.labels == candidate.labels and sent.probabilities.shape == alone.probabilities.shape:
                difference = float(np.abs(sent.probabilities - alone.probabilities).max())
                comparison.largest_difference = max(comparison.largest_difference, difference)

    def as_json(self) -> dict[str, Any]:
        """For the page of comparisons."""
        with self._lock:
            return {
                "candidate": str(self.key),
                "served": not self._absent,
                "share": self.share,
                "versions": {version: comparison.as_json() for version, comparison in self._comparisons.items()},
            }

    def families(self) -> Iterator[Family]:
        """The metrics of each version that the candidate was compared with."""
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
