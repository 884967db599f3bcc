"""The inputs of verification: random sequences that a client might send, and extreme values for padding.

A sequence is *ordinary* (values of mean 0 and deviation 1, or those of the manifest) or *raw*: `KINDS` are the kinds of
raw values, what sensors and logs hold before anybody scales them. `check`, the proof of a mend, every verification and
the promises measured by it take some of their sequences from them.

Raw values may be *ill-conditioned* for a model: rounding of the values alone (a change of a few ulps, units in the last
place) changes the answer a lot. A difference between batched and unbatched is then *explained* by rounding, and no leak
(`MeasuredAnswer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import STATIC, RowInput, Sample, Steps, steps_of, with_steps
from lengthwise.runtime.input_tables import MISSING_SHARE
from lengthwise.runtime.manifest import Manifest

EXTREME_PADDING: Final[Mapping[str, float]] = {
    "NaN": math.nan,
    "Inf": math.inf,
    "-Inf": -math.inf,
    "1e30": 1e30,
    "-1e30": -1e30,
}
"""Values for padding that are not finite or overflow. The service never pads with them; they show a mask that is only
multiplied or added, as 0 * NaN is NaN."""

_CORRELATION = 0.9
"""Correlation of a drawn step with the step before. Uncorrelated steps are noise, and a recurrent model that was
trained on recordings amplifies rounding errors on noise about a hundredfold: verification would measure that, and not
the graph."""


_THOUSAND: Final = 1000.0
_OUTLIER: Final = 1e4

_Values = NDArray[np.float64]
"""The values of a sequence, `[steps, features]`; ordinary values have the deviation 1."""


def _constant(shape: tuple[int, ...], random: np.random.Generator) -> _Values:
    """A stuck sensor: each feature keeps one value, positive or negative, of size 1 to 1,000."""
    level = 10 ** random.uniform(0, 3, shape[1:]) * random.choice([-1.0, 1.0], shape[1:])
    return np.broadcast_to(level, shape).copy()


def _mostly_zeros(shape: tuple[int, ...], random: np.random.Generator) -> _Values:
    """An event counter: nine of ten values are 0."""
    return np.where(random.random(shape) < 0.9, 0.0, random.standard_normal(shape))


def _with_outlier(shape: tuple[int, ...], random: np.random.Generator) -> _Values:
    """A sensor with one spike: all values of one step are `_OUTLIER`, or all are `-_OUTLIER`."""
    values = random.standard_normal(shape)
    values[random.integers(shape[0])] = _OUTLIER * random.choice([-1.0, 1.0])
    return values


KINDS: Final[Mapping[str, Callable[[tuple[int, ...], np.random.Generator], _Values]]] = {
    "values around -1,000": lambda shape, random: -_THOUSAND * (1 + 0.1 * random.standard_normal(shape)),
    "values around 1,000": lambda shape, random: (
        _THOUSAND * random.choice([-1.0, 1.0], shape[1:]) * (1 + 0.1 * random.standard_normal(shape))
    ),
    "values of size 1,000": lambda shape, random: _THOUSAND * random.standard_normal(shape),
    "a constant": _constant,
    "small integers": lambda shape, random: random.integers(-1, 3, shape).astype(np.float64),
    "zeros": lambda shape, _: np.zeros(shape),
    "a random walk": lambda shape, random: random.standard_normal(shape).cumsum(axis=0),
    "one far outlier": _with_outlier,
    "mostly zeros": _mostly_zeros,
}
"""The kinds of raw values: from a shape `[steps, features]` to values."""


def raw_kind_at(index: int, kinds: Sequence[str] = tuple(KINDS)) -> str | None:
    """The kind of raw values of the sequence at an index of a list: at odd indices the kinds in turn, else None."""
    return kinds[index // 2 % len(kinds)] if index % 2 and kinds else None


def raw(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Draws a sequence of one of `KINDS`, `[steps, features]`; `shape` is this shape."""
    return KINDS[kind](shape, random).astype(np.float32)


AMPLIFIED: Final = 10.0
"""Another order of summation may change an answer up to this many times as much as `rounded_otherwise` does."""
ULPS: Final = 4.0
"""A sum over many steps rounds as if its first values were some units in the last place (ulp) larger."""


def rounded_otherwise(steps: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Yields copies of `steps`, each with values that are a few ulps larger or smaller; zeros stay zeros.

    How much a model's answer changes for these copies shows how ill-conditioned the model is at these values, and so
    how much another order of the same sums may change the answer.

    Args:
        steps: `[length, features]` or `[rows, width, features]`.
    """
    # The changes over the steps, in ulps: all up, all down, down and then up, a ramp, and three random ones
    ulp = np.spacing(np.abs(steps)) * (steps != 0)
    width = steps.shape[-2]
    ramp = np.linspace(-1, 1, width)[:, None]
    random = np.random.default_rng(0)
    for ulps in (1.0, -1.0, ULPS * np.sign(ramp), ULPS * ramp, *random.choice([-ULPS, ULPS], (3, width, 1))):
        yield (steps + ulps * ulp).astype(np.float32)


MOST_AMPLIFIED: Final = 1e-3
"""Largest relative difference that rounding may explain in an ordinary sequence: more would hide a leak."""
ROUNDING: Final = 1e-5
"""Largest difference that counts as rounding in float32, times max(1, the row's largest |logit|). The exporter and
`lengthwise check` use it too."""

ModelAnswer = NDArray[np.float32]


@dataclass
class MeasuredAnswer:
    """An expected answer to a sequence, with what is needed to measure how much rounding changes this answer.

    It is measured only when a difference needs an explanation. Differences are relative: divided by `scale_of(answer)`.
    """

    answer: ModelAnswer
    steps: RowInput
    compute: Callable[[RowInput], ModelAnswer | None]  # computes the answer to other values of the sequence
    # Computes the answer in float64; None, or an answer None, if the model does not run in float64
    compute_exactly: Callable[[RowInput], ModelAnswer | None] | None = None
    is_raw: bool = False  # whether the sequence has raw values
    allowed: float = ROUNDING  # a relative difference up to this needs no explanation

    @cached_property
    def _by_rounding(self) -> float:
        """The largest finite relative difference that rounding makes in the answer.

        It is the largest of the differences between the answer to the values and those to the copies of
        `rounded_otherwise`; and of that between the expected answer and the one in float64, if there is one.
        """
        unrounded = self.compute(self.steps)
        others = [with_steps(self.steps, steps) for steps in rounded_otherwise(steps_of(self.steps))]
        pairs = [(self.compute(steps), unrounded) for steps in others]
        pairs += [] if self.compute_exactly is None else [(self.compute_exactly(self.steps), self.answer)]
        differences = [
            largest_difference(actual, expected)
            for actual, expected in pairs
            if actual is not None and expected is not None
        ]
        return max(filter(math.isfinite, differences), default=0.0) / scale_of(self.answer)

    def difference_by_rounding(self, difference: float) -> float:
        """Returns how much rounding changes the answer, relatively; 0 where rounding is no explanation of `difference`.

        It is none for tokens; for a difference of up to `allowed`, which needs none, or an infinite one; and for a
        difference above `MOST_AMPLIFIED` of an ordinary sequence.

        Args:
            difference: The relative difference of an answer from this one.
        """
        is_tokens = steps_of(self.steps).dtype != np.float32
        is_too_large = difference > MOST_AMPLIFIED and not self.is_raw
        if is_tokens or is_too_large or not self.allowed < difference < math.inf:
            return 0.0
        return self._by_rounding


def exactly(answer: ModelAnswer) -> MeasuredAnswer:
    """An expected answer that is known exactly: rounding explains no difference from it."""
    return MeasuredAnswer(answer, np.zeros(0, np.int64), lambda _: None)


def largest_difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest absolute difference of two arrays.

    Infinite if a number of either is not finite, or the shapes differ; 0 for empty arrays.
    """
    if actual.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        differences = np.abs(actual - expected)
    return float(differences.max(initial=0)) if np.isfinite(differences).all() else math.inf


def scale_of(answer: NDArray[np.float32]) -> float:
    """What differences of an answer are divided by to make them relative: max(1, the largest |logit|)."""
    return max(1.0, float(np.abs(answer).max(initial=0)))


def lengths_for(manifest: Manifest, lengths: Sequence[int]) -> list[int]:
    """Adapts lengths to a model: each becomes `min_length - 1` steps longer; those above `max_length` are left out.

    So length 1 becomes the shortest sequence that the model accepts, length 2 one step more.
    """
    added_steps = manifest.min_length - 1
    return [added_steps + length for length in lengths if added_steps + length <= manifest.max_length]


def draw(manifest: Manifest, lengths: Sequence[int], seed: int, *, raw: bool = False) -> list[RowInput]:
    """Draws random sequences: each `[length, features]` float32, or `[length]` int64 for a token model.

    If the model takes more than the steps of one sequence, each result is a `Sample` instead: with random static
    values, with further sequences, whose lengths are others of `lengths`, and with the states of a sequence's begin.

    Values have the mean and the standard deviation of the manifest, if it has them, and consecutive steps are
    correlated. Some steps are zeros, and so is the last step of every other ordinary sequence, because zeros are data.
    If the model accepts missing values, a tenth of the values are NaN.

    Args:
        manifest: The manifest of the model.
        lengths: The length of each sequence.
        seed: The seed of the random numbers.
        raw: Whether every other sequence is raw: at odd indices, each of `KINDS` in turn. Otherwise all are ordinary.
    """
    random = np.random.default_rng(seed)
    kinds = [raw_kind_at(index) if raw else None for index in range(len(lengths))]
    ordinary_indices = range(0, len(lengths), 2 if raw else 1)
    end_in_zeros = {*ordinary_indices[1::2]}
    sequences: list[RowInput] = [
        _sequence(manifest, length, random, kind, ends_in_zeros=index in end_in_zeros)
        for index, (length, kind) in enumerate(zip(lengths, kinds, strict=True))
    ]
    if manifest.blank is None:
        return sequences
    return [
        _sample(manifest, manifest.blank, steps_of(steps), lengths, random, kind)
        for steps, kind in zip(sequences, kinds, strict=True)
    ]


def _sample(
    manifest: Manifest,
    blank: Sample,
    steps: Steps,
    lengths: Sequence[int],
    random: np.random.Generator,
    kind: str | None,
) -> Sample:
    """Draws static values and further sequences, and returns the steps with them.

    `kind` is that of `_sequence`; the other arguments are those of `draw`.
    """
    beside, static = dict(blank.beside), manifest.input.static
    if static is not None:
        beside[STATIC] = static.drawn(random)
    others = {}
    for name, further in manifest.further.items():
        length = min(int(random.choice(lengths)), further.max_length)
        others[name] = _sequence(further, length, random, kind, ends_in_zeros=bool(random.integers(2)))
    return Sample(steps, beside, others)


def _sequence(
    manifest: Manifest, length: int, random: np.random.Generator, kind: str | None, *, ends_in_zeros: bool
) -> Steps:
    """Draws a sequence: token ids, or ordinary values (if `kind` is None), or raw values of a kind.

    Args:
        manifest: The manifest of the model.
        length: Steps.
        random: Is advanced.
        kind: One of `KINDS`, or None.
        ends_in_zeros: Whether the last step is zeros (of an ordinary sequence), or the last token id is 0.
    """
    if manifest.input.vocabulary is not None:
        tokens = random.integers(0, manifest.input.vocabulary, size=length, dtype=np.int64)
        if ends_in_zeros:
            tokens[-1] = 0
        return tokens
    features = manifest.input.features or 1
    mean = np.asarray(manifest.input.mean or np.zeros(features))
    std = np.asarray(manifest.input.std or np.ones(features))
    if kind is None:  # a first-order autoregression with variance 1 at every step
        units = random.standard_normal((length, features))
        units[1:] *= math.sqrt(1 - _CORRELATION**2)
        for before, step in pairwise(units):
            step += _CORRELATION * before
    else:
        units = KINDS[kind]((length, features), random)
    values = (mean + std * units).astype(np.float32)
    if manifest.missing != "refuse":
        values[random.random(values.shape) < MISSING_SHARE] = np.nan
    if kind is None and length > 2:
        values[length // 2] = 0.0
    if kind is None and length > 1 and ends_in_zeros:
        values[-1] = 0.0
    return values
