"""Drift: whether the sequences of the last minutes still look like those that the model was trained on.

An *aspect* is what is compared, by the population stability index (PSI) of its histogram with that of the training data
(`DataProfile`): "length", "missing" (values), "class" (the answers), and "feature INDEX" for each feature.
"""

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

LEAST_SEQUENCES: Final = 200  # with fewer in the window there is no PSI: chance alone would exceed the limits
MOST_GAUGES: Final = 64  # features with a gauge; of more features, those that drifted most
_BLOCK: Final = 50  # sequences that enter and leave the window together
_MOST_MEMORY_BYTES: Final = 2**20  # fewer sequences are counted together if they hold so much memory


class DriftWindow:
    """The counts of a model's last sequences, compared with its training data."""

    def __init__(self, profile: DataProfile, manifest: Manifest) -> None:
        self.profile = profile
        self.manifest = manifest
        self._counter = ProfileCounter(profile, manifest.classes)  # counts sequences in the profile's bins
        self._blocks: deque[ProfileCounts] = deque()  # the oldest is first
        self.counts: ProfileCounts | None = None  # the sum of the blocks
        self._items: list[tuple[Item, Answer]] = []  # not counted yet
        self._memory_bytes = 0  # of these

    def add(self, items: Sequence[Item], answers: Sequence[Answer], memory_bytes: int = 0) -> None:
        """Adds sequences with their answers to the window, in blocks; drops the oldest block if the window is full.

        `memory_bytes`: the memory of the sequences, which are kept until their block is counted.
        """
        self._items += zip(items, answers, strict=True)
        self._memory_bytes += memory_bytes
        while len(self._items) >= _BLOCK or (self._items and self._memory_bytes >= _MOST_MEMORY_BYTES):
            next_items, self._items = self._items[:_BLOCK], self._items[_BLOCK:]
            block = self._counter.count(
                [item.steps for item, _ in next_items],
                [index for _, answer in next_items for index in answered_classes(answer, self.manifest)],
            )
            append_or_add(self._blocks, block, _BLOCK)
            self.counts = block if self.counts is None else self.counts + block
            if self.counts.sequences > WINDOW_SEQUENCES:
                self.counts -= self._blocks.popleft()
        if not self._items:
            self._memory_bytes = 0

    def drift(self) -> dict[str, float]:
        """The PSI of each aspect; empty if the window has fewer than `LEAST_SEQUENCES`."""
        window = self.counts
        return {} if window is None or window.sequences < LEAST_SEQUENCES else self._counter.drift(window)


class Drift(Consumer):
    """The windows of all models that have a profile of their training data."""

    name = "drift"

    def __init__(self, share: float, is_served: Callable[[str, str], bool] = lambda _name, _version: True) -> None:
        self.share = share
        self._is_served = is_served
        self._windows: dict[tuple[str, str], DriftWindow] = {}  # by name and version

    def wants(self, call: AnsweredCall) -> bool:
        """Whether the model has a profile."""
        return call.model.manifest.training is not None

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Adds calls to the windows of their models."""
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
        """Removes the windows of versions that are no longer served: their gauges would never change again."""
        for key in list(self._windows):
            if not self._is_served(*key):
                self._windows.pop(key, None)

    def families(self) -> Iterator[Family]:
        """Yields the gauges of the PSI of each aspect, and of the limits above which it is called drift."""
        self._forget()
        labels = ("model", "version", "what")
        rows = [
            ((*key, name_of(aspect, window.manifest)), psi, window.profile.limits.of(aspect))
            for key, window in list(self._windows.items())
            for aspect, psi in psis_with_gauge(window.drift(), window.profile)
        ]
        yield Family(
            "gauge",
            "largest",
            "drift",
            f"Population stability index of the last {WINDOW_SEQUENCES} sequences against the training data.",
            labels,
            [(values, psi) for values, psi, _ in rows],
        )
        yield Family(
            "gauge",
            "largest",
            "drift_limit",
            "The lengthwise_drift from which on the data has drifted.",
            labels,
            [(values, limit) for values, _, limit in rows],
        )


def append_or_add(blocks: MutableSequence[ProfileCounts], block: ProfileCounts, sequences: int) -> None:
    """Appends a block of counts; or adds it to the last block, if that has fewer than so many sequences."""
    if blocks and blocks[-1].sequences < sequences:
        blocks[-1] += block
    else:
        blocks.append(block)


def psis_with_gauge(drift: dict[str, float], profile: DataProfile) -> list[tuple[str, float]]:
    """The PSIs that have a gauge: of every aspect, but of at most `MOST_GAUGES` features, nearest to their limits."""
    features = [aspect for aspect in drift if aspect.startswith(FEATURE)]
    if len(features) > MOST_GAUGES:
        features = sorted(features, key=lambda aspect: -drift[aspect] / profile.limits.of(aspect))[:MOST_GAUGES]
    others = [aspect for aspect in drift if not aspect.startswith(FEATURE)]
    return [(aspect, drift[aspect]) for aspect in [*others, *features]]


def name_of(aspect: str, manifest: Manifest) -> str:
    """The name of an aspect for people: that of a feature has the feature's name, if it has one: `feature 0 (ax)`."""
    names = manifest.input.names
    if names is None or not aspect.startswith(FEATURE):
        return aspect
    return f"{aspect} ({names[int(aspect.removeprefix(FEATURE))]})"


def answered_classes(answer: Answer, manifest: Manifest) -> list[int]:
    """The indices of the classes in an answer.

    Single-label: one. Multi-label: those above the threshold. Per-step: one for each step.
    """
    if manifest.task == "single-label":
        return [answer.best]
    if manifest.task == "per-step":
        indexes: list[int] = answer.probabilities.argmax(axis=1).tolist()
        return indexes
    chosen: list[int] = (answer.probabilities >= manifest.threshold).nonzero()[0].tolist()
    return chosen
