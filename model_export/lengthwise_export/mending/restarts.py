"""Why a mend begins again: the original accepts fewer lengths than was thought, or a mask of it has to be opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SHORTEST_RUN: Final = 8
"""Fewer lengths in a row at which two sizes agree are chance."""


class LengthsRestricted(Exception):
    """The original accepts only lengths from `shortest` to `longest`."""

    def __init__(self, shortest: int, longest: int) -> None:
        super().__init__(f"{shortest} to {longest}")
        self.shortest = shortest
        self.longest = longest


class StepsHidden(Exception):
    """A loop is a layer if masks that the values of the steps decide are opened; each with the number that it hides."""

    def __init__(self, masks: Mapping[str, float]) -> None:
        super().__init__(f"{dict(masks)}")
        self.masks = masks


def longest_run(accepted: NDArray[np.bool_]) -> slice | None:
    """The longest range of accepted lengths; None if it is too short to be meant, or in the middle."""
    if accepted.all():
        return slice(0, len(accepted))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], accepted.astype(np.int8), [0]])))
    runs = [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    return slice(start, stop) if stop - start >= _SHORTEST_RUN else None
