"""The four distributions of lengths, as `lengthwise bench --lengths` draws them.

Drawn here with NumPy alone: `service.bench` wants packages that a bare machine does not have. A test holds the two to
the same lengths.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from service.padding import Steps

DISTRIBUTIONS = ("lognormal:50,0.7", "uniform:1,200", "bimodal:20,200,0.1", "zipf:1.2,500")


def draw(distribution: str, count: int, max_length: int, random: np.random.Generator) -> list[int]:
    """`count` lengths of one of `DISTRIBUTIONS`, cut at `max_length`."""
    kind, _, arguments = distribution.partition(":")
    first, *rest = (float(part) for part in arguments.split(","))
    drawn: NDArray[np.float64]
    if kind == "lognormal":
        drawn = np.round(random.lognormal(math.log(first), rest[0], size=count))
    elif kind == "uniform":
        drawn = random.integers(int(first), int(rest[0]), size=count, endpoint=True).astype(np.float64)
    elif kind == "bimodal":
        drawn = np.where(random.random(count) < rest[1], rest[0], first)
    elif kind == "zipf":
        lengths = np.arange(1, int(rest[0]) + 1, dtype=np.float64)
        weights = lengths**-first
        drawn = random.choice(lengths, size=count, p=weights / weights.sum())
    else:
        raise ValueError(f"unknown distribution {distribution!r}; there are: {', '.join(DISTRIBUTIONS)}")
    return [int(length) for length in np.clip(drawn, 1, max_length)]


def sequences(lengths: list[int], features: int, random: np.random.Generator) -> list[Steps]:
    """Normal numbers, `[length, features]` each."""
    return [random.standard_normal((length, features), dtype=np.float32) for length in lengths]
