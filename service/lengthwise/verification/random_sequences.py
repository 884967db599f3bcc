"""Draws sequences that a model might be sent, to prove it with: at export, and at load on a device of another kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lengthwise.padding import Steps
from lengthwise.runtime.manifest import Manifest

LIKENESS = 0.9
"""Correlation of a drawn step with the one before. Steps without any are noise, and a recurrent model that was trained
on recordings amplifies rounding on noise a hundredfold: the proof would measure that, and not the graph."""


def draw(manifest: Manifest, lengths: Sequence[int], seed: int) -> list[Steps]:
    """Sequences as a client might send them, `[length, features]` or `[length]`.

    Values have the model's own mean and standard deviation where the manifest has them, and each step resembles the
    one before. Some steps are zeros, and in every other sequence the last one is: zeros are data. Where the model takes
    missing values, some are.
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
    for step in range(1, length):  # an autoregression of first order, of variance 1 at every step
        drawn[step] = LIKENESS * drawn[step - 1] + math.sqrt(1 - LIKENESS**2) * drawn[step]
    values = (mean + std * drawn).astype(np.float32)
    if manifest.missing != "refuse":
        values[random.random(values.shape) < 0.1] = np.nan
    if length > 2:
        values[length // 2] = 0.0
    if length > 1 and index % 2:
        values[-1] = 0.0
    return values
