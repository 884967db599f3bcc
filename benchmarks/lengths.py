"""The distributions of lengths that plans for a device are measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

LENGTHS: Final[Mapping[str, Draw]] = {
    "lognormal": lambda random, n: random.lognormal(np.log(50), 0.7, n),
    "uniform": lambda random, n: random.uniform(1, 200, n),
    "bimodal": lambda random, n: np.where(random.random(n) < 0.9, random.normal(20, 4, n), random.normal(200, 30, n)),
    "zipf": lambda random, n: random.zipf(1.2, n).astype(np.float64),
}
"""Some numbers drawn of each, by name; not rounded, and not limited."""


def draw(name: str, count: int, longest: int, random: np.random.Generator) -> NDArray[np.int64]:
    """So many lengths of a distribution, `[count]`, from 1 to `longest` steps."""
    return np.clip(LENGTHS[name](random, count), 1, longest).astype(np.int64)
