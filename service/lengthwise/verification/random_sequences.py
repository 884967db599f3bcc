"""The inputs of verification: random sequences that a client might send, and extreme values for padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from lengthwise.padding import Steps
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


def lengths_for(manifest: Manifest, wanted: Sequence[int]) -> list[int]:
    """The lengths among `wanted` that the model accepts.

    For a model with a least number of steps, they count from there: its shortest sequence in the place of 1, one step
    more in the place of 2. So the steps that its last window adds are tried, as in the other models.
    """
    more = manifest.min_length - 1
    return [more + length for length in wanted if more + length <= manifest.max_length]


def draw(manifest: Manifest, lengths: Sequence[int], seed: int) -> list[Steps]:
    """Random sequences: each `[length, features]` float32, or `[length]` int64 for a token model.

    Values have the mean and the standard deviation of the manifest, if it has them, and consecutive steps are
    correlated. Some steps are zeros, and so is the last step of every other sequence, because zeros are data. If the
    model accepts missing values, a tenth of the values are NaN.
    """
    random = np.random.default_rng(seed)
    return [_sequence(manifest, length, index, random) for index, length in enumerate(lengths)]


def _sequence(manifest: Manifest, length: int, index: int, random: np.random.Generator) -> Steps:
    if manifest.input.vocabulary is not None:
        tokens = random.integers(0, manifest.input.vocabulary, size=length, dtype=np.int64)
        if index % 2:
            tokens[-1] = 0
        return tokens
    features = manifest.input.features or 1
    mean = np.asarray(manifest.input.mean or np.zeros(features))
    std = np.asarray(manifest.input.std or np.ones(features))
    drawn = random.standard_normal((length, features))
    for step in range(1, length):  # a first-order autoregression with variance 1 at every step
        drawn[step] = _CORRELATION * drawn[step - 1] + math.sqrt(1 - _CORRELATION**2) * drawn[step]
    values = (mean + std * drawn).astype(np.float32)
    if manifest.missing != "refuse":
        values[random.random(values.shape) < 0.1] = np.nan
    if length > 2:
        values[length // 2] = 0.0
    if length > 1 and index % 2:
        values[-1] = 0.0
    return values
