"""What training records look like: their lengths, what is missing, and how their scales and levels differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.dataset import Record


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the training records look like.

    Attributes:
        records: Their number.
        median_length: Median number of steps.
        longest: Largest number of steps.
        missing: Share of missing values.
        spread: The factor between the standard deviations of small and large sequences (their tenth and ninetieth
            percentile), of the feature where it is largest; infinity if some sequences are constant. 1 for tokens.
        shift: Standard deviation of the means of sequences, relative to that of all values, of the largest feature.
    """

    records: int
    median_length: float
    longest: int
    missing: float
    spread: float
    shift: float


def look(records: Sequence[Record]) -> DataFacts:
    """Computes the facts about records."""
    lengths = [len(record.steps) for record in records]
    values = [np.asarray(record.steps, dtype=np.float64) for record in records]
    facts = (len(records), float(np.median(lengths)), max(lengths))
    if values[0].ndim == 1:
        return DataFacts(*facts, missing=0.0, spread=1.0, shift=0.0)
    missing = sum(int(np.isnan(steps).sum()) for steps in values) / sum(steps.size for steps in values)
    levels = np.array([_means(steps) for steps in values])  # (records, features)
    scales = np.array([np.sqrt(_means((steps - level) ** 2)) for steps, level in zip(values, levels, strict=True)])
    low, high = np.quantile(scales, [0.1, 0.9], axis=0)
    spreads = np.divide(high, np.maximum(low, high * 1e-12), out=np.ones_like(high), where=high > 0)
    everything = np.concatenate(values)
    std = np.sqrt(_means((everything - _means(everything)) ** 2))
    shifts = levels.std(axis=0) / np.where(std > 0, std, 1.0)
    spread = float(spreads.max())
    return DataFacts(*facts, missing, math.inf if spread >= 1e11 else spread, float(shifts.max()))


def _means(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[features]`, the mean of the values that are present; 0 if none is."""
    present = ~np.isnan(steps)
    return np.asarray(np.where(present, steps, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1))
