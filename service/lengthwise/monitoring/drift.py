"""Drift: whether the sequences of the last minutes still look like those that the model was trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from typing import Final

from lengthwise.decoding.calls import Item
from lengthwise.monitoring.consumers import AnsweredCall, Consumer
from lengthwise.runtime.answers import Answer
from lengthwise.runtime.data_profile import FEATURE, WINDOW_SEQUENCES, DataProfile, ProfileCounter, ProfileCounts
from lengthwise.runtime.manifest import Manifest
from lengthwise.telemetry.families import Family

LEAST_SEQUENCES: Final = 200  # with fewer in the window nothing is said: chance alone would exceed the limits
MOST_GAUGES: Final = 64  # features with a gauge; of a model with more, those that drifted most
_BLOCK: Final = 50  # sequences that enter and leave the window together
_MOST_MEMORY_BYTES: Final = 2**20  # sequences that hold so much are counted earlier


class DriftWindow:
    """The last sequences of one model, compared with its training data."""

    def __init__(self, profile: DataProfile, manifest: Manifest) -> None:
        self.profile = profile
        self.manifest = manifest
        self._counter = ProfileCounter(profile, manifest.classes)
        self._blocks: deque[ProfileCounts] = deque()
        self.counts: ProfileCounts | None = None  # of the sequences that are compared
        self._items: list[tuple[Item, Answer]] = []
        self._memory_bytes = 0

    def add(self, items: Sequence[Item], answers: Sequence[Answer], memory_bytes: int = 0) -> None:
        """Counts sequences with their answers, in blocks; `memory_bytes` is the memory of the sequences."""
        self._items += zip(items, answers, strict=True)
        self._memory_bytes += memory_bytes
        while len(self._items) >= _BLOCK or (self._items and self._memory_bytes >= _MOST_MEMORY_BYTES):
            counted, self._items = self._items[:_BLOCK], self._items[_BLOCK:]
            block = self._counter.count(
                [item.steps for item, _ in counted],
                [index for _, answer in counted for index in answered_classes(answer, self.manifest)],
            )
            append_or_add(self._blocks, block, _BLOCK)
            self.counts = block if self.counts is None else self.counts + block
            if self.counts.sequences > WINDOW_SEQUENCES:
                self.counts -= self._blocks.popleft()
        if not self._items:
            self._memory_bytes = 0

    def drift(self) -> dict[str, float]:
        """The PSI of each aspect: `length`, `missing`, `class`, `feature INDEX`. Empty below `LEAST_SEQUENCES`."""
        window = self.counts
        return {} if window is None or window.sequences < LEAST_SEQUENCES else self._counter.drift(window)


class Drift(Consumer):
    """The windows of all models that have a profile. The window of a version ends when it is no longer served."""

    name = "drift"

    def __init__(self, share: float, is_served: Callable[[str, str], bool] = lambda _name, _version: True) -> None:
        self.share = share
        self._is_served = is_served
        self._windows: dict[tuple[str, str], DriftWindow] = {}

    def wants(self, call: AnsweredCall) -> bool:
        """Whether the model has a profile."""
        return call.model.manifest.training is not None

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Counts calls."""
        for call in calls:
            manifest = call.model.manifest
            if manifest.training is None:
                continue
            key = (manifest.name, str(manifest.version))
            window = self._windows.get(key)
            if window is None or window.profile is not manifest.training:  # also after the version was replaced
                self._forget()
                window = self._windows[key] = DriftWindow(manifest.training, manifest)
            window.add(call.items, call.answers, call.memory_bytes)

    def _forget(self) -> None:
        """Removes the windows of versions that are no longer served, whose gauges would never change again."""
        for key in list(self._windows):
            if not self._is_served(*key):
                self._windows.pop(key, None)

    def families(self) -> Iterator[Family]:
        """The gauges of drift (PSI), and of the limits above which it is called drift."""
        self._forget()
        labels = ("model", "version", "what")
        distances = [
            ((*key, name_of(aspect, window.manifest)), psi, window.profile.limits.of(aspect))
            for key, window in list(self._windows.items())
            for aspect, psi in shown(window.drift(), window.profile)
        ]
        help_ = f"Population stability index of the last {WINDOW_SEQUENCES} sequences against the training data."
        yield Family("gauge", "largest", "drift", help_, labels, [(values, psi) for values, psi, _ in distances])
        help_ = "The lengthwise_drift from which on the data has drifted."
        yield Family(
            "gauge", "largest", "drift_limit", help_, labels, [(values, limit) for values, _, limit in distances]
        )


def append_or_add(blocks: MutableSequence[ProfileCounts], block: ProfileCounts, sequences: int) -> None:
    """Appends a block of counts, or adds it to the last block while that has fewer than so many sequences."""
    if blocks and blocks[-1].sequences < sequences:
        blocks[-1] += block
    else:
        blocks.append(block)


def shown(drift: dict[str, float], profile: DataProfile) -> list[tuple[str, float]]:
    """The PSIs that have a gauge: all but those of features, and the `MOST_GAUGES` features nearest to their limits."""
    features = [aspect for aspect in drift if aspect.startswith(FEATURE)]
    if len(features) > MOST_GAUGES:
        features = sorted(features, key=lambda aspect: -drift[aspect] / profile.limits.of(aspect))[:MOST_GAUGES]
    return [
        (aspect, drift[aspect])
        for aspect in [*(aspect for aspect in drift if not aspect.startswith(FEATURE)), *features]
    ]


def name_of(aspect: str, manifest: Manifest) -> str:
    """The name of a compared aspect for people, with the name of the feature if it has one: `feature 0 (ax)`."""
    names = manifest.input.names
    return (
        aspect
        if names is None or not aspect.startswith(FEATURE)
        else f"{aspect} ({names[int(aspect[len(FEATURE) :])]})"
    )


def answered_classes(answer: Answer, manifest: Manifest) -> list[int]:
    """The classes of an answer: one of a single label, those above the threshold of several, one for each step."""
    if manifest.task == "single-label":
        return [answer.best]
    if manifest.task == "per-step":
        indexes: list[int] = answer.probabilities.argmax(axis=1).tolist()
        return indexes
    above: list[int] = (answer.probabilities >= manifest.threshold).nonzero()[0].tolist()
    return above
