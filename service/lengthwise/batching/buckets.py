"""The shapes that batches have on a device: few enough to be seen once before anybody waits for one.

A device's memory grows by every new shape, and its libraries choose their kernels by shape. So a width is rounded up to
one of few, and rows that are nobody's, of one step each, fill a batch up to one of few numbers of rows. Which ones, the
cost table decides: as few as can be while no rounding adds more than a small share of steps or of predicted seconds.
The planner sees the rounding as a cost (`BucketedCosts`), so that it makes batches that need no filling where it can.

Whatever is rounded up has been counted before it runs: widths in the queue, rows in the batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.cost import Column, CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import rounded_width

MOST_ADDED: Final = 0.05
"""Most that one rounding adds, of steps or of seconds. On average it is less than half of that, rows and widths
together below a twentieth: lengths fall evenly between two widths, and most batches are as full as they may be."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The widths and the numbers of rows that run.

    Attributes:
        widths: Ascending, at least one.
        rows: Ascending, from 1.
        limits: What one batch may be; a full batch runs as it is.
        multiple: Widths are multiples of it.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    limits: BatchLimits
    multiple: int = 4

    def width_of(self, length: int) -> int:
        """The width at which a sequence runs."""
        place = bisect_left(self.widths, length)
        return self.widths[place] if place < len(self.widths) else rounded_width(length, self.multiple)

    def rows_of(self, rows: int, width: int) -> int:
        """With how many rows a batch of so many sequences runs."""
        most = self.limits.most_rows(width)
        if rows >= most:
            return rows
        return min(self.rows[bisect_left(self.rows, rows)], most)

    def shapes(self) -> list[tuple[int, int]]:
        """Every rows and width that a batch can have, the largest first."""
        every = []
        for width in self.widths:
            most = self.limits.most_rows(width)
            every += [(rows, width) for rows in (*self.rows[: bisect_left(self.rows, most)], most)]
        return sorted(every, key=lambda shape: (shape[0] * shape[1], shape[0]), reverse=True)


def choose(
    cost: CostTable, limits: BatchLimits, *, max_length: int, multiple: int = 4, most_added: float = MOST_ADDED
) -> Buckets:
    """The fewest widths and rows of which none adds more than its share.

    Args:
        cost: What batches cost on the device.
        limits: What one batch may be.
        max_length: The longest sequence.
        multiple: Widths are multiples of it.
        most_added: Share of steps, and of predicted seconds, that one rounding may add.
    """
    widest = rounded_width(max_length, multiple)

    def seconds_at(width: int) -> float:
        return cost.predict(limits.most_rows(width), width)

    def seconds_of(rows: int) -> float:
        return cost.predict(rows, max(multiple, min(widest, limits.cost_steps // limits.rows)))

    widths = _fewest(range(multiple, widest + 1, multiple), seconds_at, most_added)
    rows = _fewest(range(1, limits.rows + 1), seconds_of, most_added)
    return Buckets(widths, rows, limits, multiple)


def _fewest(points: Sequence[int], seconds: Callable[[int], float], most_added: float) -> tuple[int, ...]:
    """The fewest of some ascending points to which all can be rounded up, from the largest down."""
    kept = [points[-1]]
    for point in reversed(points):
        above = kept[-1]
        if max(above / point, seconds(above) / seconds(point)) > 1 + most_added:
            kept.append(point)
    return tuple(reversed(kept))


class BucketedCosts(CostTable):
    """A cost table that says what a batch costs as it runs: with the rows that fill it up.

    Args:
        table: What was measured.
        buckets: What runs.
    """

    def __init__(self, table: CostTable, buckets: Buckets) -> None:
        super().__init__(table.rows.tolist(), table.widths.tolist(), table.seconds, clock=table.clock)
        self._buckets = buckets

    def _computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> Column:
        filled = [self._buckets.rows_of(count, width) for count in range(1, rows + 1)]
        exact = super()._computed(width, filled[-1], seconds).seconds
        return Column.of(np.asarray([exact[count] for count in filled]))
