"""Data sets as newcomers bring them: changed copies of a set of aeon's wheel, and small made ones.

Each change happens to the training and to the test records alike, with random numbers of a fixed seed. So a set has the
difficulties that a newcomer's data has: scales that differ, missing values, few records, skewed classes, lengths that
differ by orders of magnitude, tokens, an order of events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding import dataset
from lengthwise.decoding.dataset import Record
from lengthwise_export.architecture.spec import Spec

Values = NDArray[np.float64]
VOWELS: Final = "JapaneseVowels"
_CODES: Final = 6
_SKEWED: Final = (30, 24, 18, 13, 9, 7, 5, 4, 3)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """A data set with its two splits."""

    name: str
    training: list[Record]
    test: list[Record]

    @property
    def labels(self) -> list[str]:
        """The labels of the training split, in order."""
        return sorted({str(record.label) for record in self.training})

    @property
    def is_tokens(self) -> bool:
        """Whether a step is a token id."""
        return self.training[0].steps.ndim == 1

    @property
    def misses_values(self) -> bool:
        """Whether a value is missing."""
        return not self.is_tokens and any(np.isnan(record.steps).any() for record in (*self.training, *self.test))

    def spec(self, model: dict[str, Any]) -> Spec:
        """The spec that a newcomer writes, with a table `[model]`; where values are missing it says `auto`."""
        steps: dict[str, Any] = {"max_length": max(len(record.steps) for record in (*self.training, *self.test))}
        if self.is_tokens:
            steps["vocabulary"] = 1 + max(int(record.steps.max()) for record in (*self.training, *self.test))
        else:
            steps["features"] = self.training[0].steps.shape[1]
        if self.misses_values and not model:
            model = {"preset": "auto"}
        tables: dict[str, Any] = {"input": steps, "output": {"labels": self.labels}}
        return Spec.from_table(tables | ({"model": model} if model else {}))


def _scaled_sequences(values: Values, random: np.random.Generator) -> Values:
    return np.asarray(values * 10.0 ** random.uniform(-3, 3))


def _scaled_features(values: Values, random: np.random.Generator) -> Values:
    return np.asarray(values * 10.0 ** random.uniform(-3, 3, size=(1, values.shape[1])))


def _fifth_missing(values: Values, random: np.random.Generator) -> Values:
    return np.where(random.random(values.shape) < 0.2, np.nan, values)


def _features_missing(values: Values, random: np.random.Generator) -> Values:
    gone = random.random(values.shape[1]) < 0.25
    gone[0] = False
    return np.where(gone, np.nan, values)


def _ends_missing(values: Values, random: np.random.Generator) -> Values:
    kept = len(values) - int(random.integers(0, len(values) // 2))
    return np.where(np.arange(len(values))[:, None] < kept, values, np.nan)


def _stretched(values: Values, random: np.random.Generator) -> Values:
    length = max(int(len(values) * 10.0 ** random.uniform(-0.8, 1.2)), 2)
    places = np.linspace(0, len(values) - 1, length)
    return np.stack([np.interp(places, np.arange(len(values)), feature) for feature in values.T], axis=1)


def _tokens(values: Values, _: np.random.Generator) -> NDArray[np.int64]:
    """The signs of some features as one number."""
    return np.asarray((values[:, :_CODES] > 0) @ 2 ** np.arange(_CODES), dtype=np.int64)


_CHANGES: Final[dict[str, Callable[[Values, np.random.Generator], NDArray[Any]]]] = {
    "each sequence scaled": _scaled_sequences,
    "each feature scaled": _scaled_features,
    "20 % missing": _fifth_missing,
    "whole features missing": _features_missing,
    "ends missing": _ends_missing,
    "2 to 400 steps": _stretched,
    "tokens": _tokens,
}


def _changed(records: Sequence[Record], name: str, seed: int) -> list[Record]:
    random = np.random.default_rng(seed)
    change, kind = _CHANGES[name], np.int64 if name == "tokens" else np.float32
    return [replace(record, steps=change(record.steps.astype(np.float64), random).astype(kind)) for record in records]


def _few(records: Sequence[Record], counts: Sequence[int]) -> list[Record]:
    """So many records of each label, in order of the labels."""
    labels = sorted({str(record.label) for record in records})
    kept = []
    for label, count in zip(labels, counts, strict=True):
        kept += [record for record in records if str(record.label) == label][:count]
    return kept


def _order_of_events(count: int, seed: int) -> list[Record]:
    """Of one feature: a pulse up and a pulse down; the label is which one comes first."""
    random = np.random.default_rng(seed)
    records = []
    for index in range(count):
        values = 0.1 * random.standard_normal((int(random.integers(20, 40)), 1))
        first = int(random.integers(0, 6))
        second = int(random.integers(len(values) - 8, len(values) - 2))
        up_first = bool(random.integers(2))
        values[first : first + 2] += 1.0 if up_first else -1.0
        values[second : second + 2] -= 1.0 if up_first else -1.0
        label = "up first" if up_first else "down first"
        records.append(Record(str(index), values.astype(np.float32), label, f"made:{index}"))
    return records


def names() -> list[str]:
    """The names of all sets."""
    return [*_CHANGES, "skewed classes", "4 records of each class", "order of events"]


def read(name: str) -> LabelledSet:
    """The set of a name."""
    if name == "order of events":
        return LabelledSet(name, _order_of_events(240, 1), _order_of_events(400, 2))
    training, test = (
        list(dataset.read(dataset.locate(f"aeon:{VOWELS}_{split}"), "values")) for split in ("TRAIN", "TEST")
    )
    if name == "skewed classes":
        return LabelledSet(name, _few(training, _SKEWED), test)
    if name == "4 records of each class":
        return LabelledSet(name, _few(training, [4] * 9), test)
    return LabelledSet(name, _changed(training, name, 1), _changed(test, name, 2))
