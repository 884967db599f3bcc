"""What a model's training data looked like, in a few figures: the reference of the drift metrics.

Four *properties* of the data are compared, under these keys: `length` (of sequences), `missing` (how many values are),
`class` (as predicted) and, for each feature, `feature INDEX` (its values). Lengths, values and classes are counted in
bins. The edges of the bins of lengths and values are the deciles of the training data, so that each bin has about a
tenth of it. A distribution of today is compared with that of the training by the population stability index (PSI), the
measure that banks have used for scorecards since the 1990s:

    PSI = sum over the bins of (today - training) * ln(today / training)

How large a PSI is without any drift depends on how many sequences there are and on how alike their steps are. So the
profile holds that too: the training sequences are split in halves many times, and one half is compared with a window of
sequences drawn from the other. A drift is a PSI well above the largest that occurred there (`DriftLimits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lengthwise.padding import Steps

Counts = NDArray[np.int64] | NDArray[np.float64]

WINDOW_SEQUENCES: Final = 1000
"""Sequences of today that are compared with the training data."""
LEAST_LIMIT: Final = 0.1
"""Below this PSI, by a rule of thumb, nothing has changed that matters."""
FEATURE: Final = "feature "
"""What comes before the index of a feature in the key of a property."""

_DECILES: Final = np.linspace(0.1, 0.9, 9)
_MOST_STEPS: Final = 8
"""So many steps of one sequence are counted: neighbouring steps say nearly the same."""
MOST_SEQUENCES: Final = 2000
"""So many sequences of the training data are counted."""
_SPLITS: Final = 20
_ABOVE_CHANCE: Final = 1.5
"""A drift is a PSI that is so many times the largest that occurred without a drift."""
_HALF: Final = 0.5
"""Added to each bin of both distributions, so that an empty bin does not make the PSI infinite."""


class ManifestTable(BaseModel):
    """A table of a manifest: immutable, without unknown keys, infinity or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Bins(ManifestTable):
    """A distribution of the training data, as the share of each bin."""

    edges: tuple[float, ...]  # ascending; a bin is above one edge and up to the next. The outer bins are open
    shares: tuple[float, ...]  # of the training data in each bin, one more than edges; they sum to 1, or are all 0

    @model_validator(mode="after")
    def _check_edges(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges make {len(self.edges) + 1} bins, not {len(self.shares)}")
        if list(self.edges) != sorted(self.edges):
            raise ValueError("the edges must ascend")
        return self

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Self:
        """The bins between the deciles of values `[n]`; one bin with the share 0 if there are no values."""
        if not len(values):
            return cls(edges=(), shares=(0.0,))
        # Six digits are enough for an edge, and the manifest stays readable.
        edges = sorted({float(f"{edge:.6g}") for edge in np.quantile(values.astype(np.float64), _DECILES).tolist()})
        # In the type of the values, as `ProfileCounter` compares them: as float32 a value of 0.3 is above 0.3.
        counts = np.bincount(np.searchsorted(np.array(edges, values.dtype), values), minlength=len(edges) + 1)
        return cls(edges=tuple(edges), shares=tuple(_rounded(counts / len(values))))


class DriftLimits(ManifestTable):
    """The PSI from which on a window of sequences has drifted, for each property."""

    length: float
    missing: float
    classes: float
    features: tuple[float, ...]

    def of(self, key: str) -> float:
        """The limit of the property with this key: `length`, `missing`, `class` or `feature INDEX`."""
        if key.startswith(FEATURE):
            return self.features[int(key.removeprefix(FEATURE))]
        limit: float = getattr(self, {"class": "classes"}.get(key, key))
        return limit


class DataProfile(ManifestTable):
    """What the training data looked like: the distribution of each property, and the limits of its drift."""

    sequences: int = Field(ge=1)  # how many there were
    lengths: Bins
    missing: float = Field(ge=0, le=1)  # the share of values that were missing
    features: tuple[Bins, ...] = Field(min_length=1)  # present values of each feature; of token models, of the ids
    classes: tuple[float, ...] | None = None  # the share of each class, in the order of the labels; None without labels
    limits: DriftLimits  # the PSI from which on data has drifted

    @model_validator(mode="after")
    def _check_feature_limits(self) -> Self:
        if len(self.limits.features) != len(self.features):
            raise ValueError(f"limits.features: {len(self.limits.features)} limits for {len(self.features)} features")
        return self

    @classmethod
    def of(
        cls, sequences: Sequence[Steps], classes: Sequence[Sequence[int]] | None, *, labels: int, seed: int = 0
    ) -> DataProfile:
        """The profile of training data.

        Args:
            sequences: Each `[length, features]` with NaN for a missing value, or `[length]` token ids; at least one.
            classes: The classes of each sequence: one of a single label, any number else. None without labels.
            labels: How many classes there are.
            seed: Seed of the splits for the limits.
        """
        # 1. The sequences that are counted, with the classes of each
        count, indices = len(sequences), sample(len(sequences), seed)
        sequences = [sequences[index] for index in indices]
        sampled_classes = [() if classes is None else classes[index] for index in indices]
        # 2. Their distributions
        # As many steps of each sequence as `ProfileCounter` looks at: else long sequences would count for more here.
        values = np.concatenate([_columns(_thinned(steps)) for steps in sequences])
        present = ~np.isnan(values)
        lengths = Bins.of(np.array([len(steps) for steps in sequences], dtype=np.float64))
        features = tuple(Bins.of(values[present[:, i], i]) for i in range(values.shape[1]))
        class_counts = np.bincount([*chain.from_iterable(sampled_classes)], minlength=labels).astype(np.float64)
        profile = cls(
            sequences=count,
            lengths=lengths,
            missing=round(float(1 - present.mean()), 6),
            features=features,
            classes=tuple(_rounded(class_counts / class_counts.sum())) if class_counts.sum() else None,
            limits=DriftLimits(length=0, missing=0, classes=0, features=(0,) * len(features)),  # until step 3
        )
        # 3. The limits, which need the bins of the profile
        return profile.model_copy(update={"limits": _limits(profile, sequences, sampled_classes, labels, seed)})


def sample(count: int, seed: int = 0) -> list[int]:
    """The indices of the sequences that a profile counts: all, or `MOST_SEQUENCES` of them, drawn at random."""
    if count <= MOST_SEQUENCES:
        return list(range(count))
    indices: list[int] = np.random.default_rng(seed).permutation(count)[:MOST_SEQUENCES].tolist()
    return indices


def _limits(
    profile: DataProfile, sequences: Sequence[Steps], classes: Sequence[Sequence[int]], labels: int, seed: int
) -> DriftLimits:
    """The limits of a profile, from random splits of its sequences into halves."""
    # 1. The largest PSI of each property, over random splits. How often a sequence is in a half or a window is its
    # weight: its counts are computed once.
    counter = ProfileCounter(profile, labels)
    counts = [counter.count([steps], answered) for steps, answered in zip(sequences, classes, strict=True)]
    random = np.random.default_rng(seed)
    largest: dict[str, float] = {}
    for _ in range(_SPLITS):
        order = random.permutation(len(counts))
        half = (len(counts) + 1) // 2
        window = random.choice(order[-half:], size=WINDOW_SEQUENCES)
        weights = np.zeros((2, len(counts)), dtype=np.int64)
        weights[0, order[:half]] = 1
        np.add.at(weights[1], window, 1)
        reference, window_counts = (ProfileCounts.weighted(counts, row) for row in weights)
        for key, psi in _psi_by_property(reference, window_counts).items():
            largest[key] = max(largest.get(key, 0.0), psi)
    # 2. The same for the sizes in service. A PSI by chance is proportional to 1 / n + 1 / m. The halves have n / 2
    # sequences each, and the window is drawn from one of them; in service all n sequences are compared with a window
    # that is drawn from the world.
    size, window_size = len(counts), WINDOW_SEQUENCES
    factor = _ABOVE_CHANCE * ((1 / size + 1 / window_size) / (4 / size + 1 / window_size))
    limits = {key: round(max(LEAST_LIMIT, factor * psi), 4) for key, psi in largest.items()}
    return DriftLimits(
        length=limits["length"],
        missing=limits["missing"],
        classes=limits["class"],
        features=tuple(limits[f"{FEATURE}{index}"] for index in range(len(profile.features))),
    )


class ProfileCounter:
    """Counts sequences in the bins of a profile, for a model of `classes` classes."""

    def __init__(self, profile: DataProfile, classes: int) -> None:
        self._lengths = np.array(profile.lengths.edges)
        widest = max(len(bins.edges) for bins in profile.features)
        # Of a feature with fewer edges the last ones are infinite: nothing is above them.
        self._edges = np.full((len(profile.features), widest), np.inf, dtype=np.float32)
        shares = np.zeros((len(profile.features), widest + 1))
        for row, row_of_shares, bins in zip(self._edges, shares, profile.features, strict=True):
            row[: len(bins.edges)] = bins.edges
            row_of_shares[: len(bins.shares)] = bins.shares
        self._classes = classes
        size, values = profile.sequences, profile.sequences * _MOST_STEPS
        self._reference = ProfileCounts(
            sequences=size,
            lengths=np.array(profile.lengths.shares) * size,
            present=(1 - profile.missing) * values,
            missing=profile.missing * values,
            features=shares * values,
            classes=np.array(profile.classes or [0.0] * classes) * size,
        )

    def count(self, sequences: Sequence[Steps], classes: Iterable[int]) -> ProfileCounts:
        """Counts sequences and answers in the bins of the profile; of each sequence, at most `_MOST_STEPS` steps.

        Args:
            sequences: At least one; each with as many features as the profile.
            classes: The class of each answer; of per-step and multi-label answers, any number of classes.
        """
        lengths = np.array([len(steps) for steps in sequences])
        values = np.concatenate([_columns(_thinned(steps)) for steps in sequences])
        present = ~np.isnan(values)
        # NaN is above no edge, so a missing value would count in the first bin: it is taken out there.
        above = (values[:, :, None] > self._edges).sum(axis=0, dtype=np.int64)  # [features, edges]
        total = present.sum(axis=0, dtype=np.int64)
        # How many values are in a bin or above it; the difference of two neighbours is how many are in the bin.
        from_bin_on = np.concatenate([total[:, None], above, np.zeros((len(total), 1), dtype=np.int64)], axis=1)
        return ProfileCounts(
            sequences=len(sequences),
            lengths=np.bincount(np.searchsorted(self._lengths, lengths), minlength=len(self._lengths) + 1),
            present=int(present.sum()),
            missing=int(present.size - present.sum()),
            features=from_bin_on[:, :-1] - from_bin_on[:, 1:],
            classes=np.bincount(np.fromiter(classes, dtype=np.int64), minlength=self._classes),
        )

    def drift(self, counts: ProfileCounts) -> dict[str, float]:
        """The PSI of counts against the profile, by the key of the property."""
        return _psi_by_property(self._reference, counts)


@dataclass(frozen=True, slots=True, eq=False)
class ProfileCounts:
    """How many sequences, values and answers are in each bin of a profile. Two such counts can be added or subtracted.

    Numbers are not integers where they are shares of a profile times its size.
    """

    sequences: int
    lengths: Counts  # sequences by their length, [bins]
    present: float  # values that are present
    missing: float  # values that are missing
    features: Counts  # present values of each feature, [features, bins]; zeros after the last bin of a feature
    classes: Counts  # answers by class, [classes]

    def __add__(self, other: ProfileCounts) -> ProfileCounts:
        """The counts of both together."""
        return self._plus(other, 1)

    def __sub__(self, other: ProfileCounts) -> ProfileCounts:
        """These counts without `other`, the counts of a part of the sequences."""
        return self._plus(other, -1)

    @classmethod
    def weighted(cls, counts: Sequence[ProfileCounts], weights: NDArray[np.int64]) -> ProfileCounts:
        """The sum of counts, each times its weight; `weights [counts]`."""
        sums: dict[str, Any] = {
            name: np.tensordot(weights, np.array([getattr(part, name) for part in counts]), axes=1)
            for name in cls.__slots__
        }
        return cls(**sums)

    def _plus(self, other: ProfileCounts, sign: int) -> ProfileCounts:
        """These counts and `sign` (1 or -1) times the others."""
        return ProfileCounts(*(getattr(self, name) + sign * getattr(other, name) for name in self.__slots__))


def _psi_by_property(reference: ProfileCounts, counts: ProfileCounts) -> dict[str, float]:
    """The PSI between two counts, by the key of the property."""
    psi = {
        "length": _psi(reference.lengths, counts.lengths),
        "missing": _psi((reference.present, reference.missing), (counts.present, counts.missing)),
        "class": _psi(reference.classes, counts.classes),
    }
    for index, (expected, actual) in enumerate(zip(reference.features, counts.features, strict=True)):
        psi[f"{FEATURE}{index}"] = _psi(expected, actual)
    return psi


def _psi(reference: Counts | Sequence[float], counts: Counts | Sequence[float]) -> float:
    """The population stability index of counts against a reference with the same bins; 0 if either has no counts.

    Bins that are empty in both are left out.
    """
    expected, actual = np.asarray(reference, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not expected.sum() or not actual.sum():
        return 0.0
    is_used = expected + actual > 0
    expected, actual = expected[is_used] + _HALF, actual[is_used] + _HALF
    expected, actual = expected / expected.sum(), actual / actual.sum()
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _columns(steps: Steps) -> NDArray[np.float32]:
    """The steps as `[length, features]`; token ids are one feature."""
    return steps[:, None].astype(np.float32) if steps.ndim == 1 else steps.astype(np.float32, copy=False)


def _thinned(steps: Steps) -> Steps:
    """At most `_MOST_STEPS` steps of a sequence, evenly spaced."""
    stride = -(-len(steps) // _MOST_STEPS)
    return steps if stride == 1 else steps[stride // 2 :: stride]


def _rounded(shares: NDArray[np.float64]) -> list[float]:
    return [round(share, 6) for share in shares.tolist()]
