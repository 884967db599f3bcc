"""The batch shapes that run on a device: few enough that each runs once before the model serves.

On a device, memory grows with every new shape, and libraries choose their kernels by shape. So widths are rounded up to
one of a few, and batches are filled up with short rows of zeros (*fillers*) to one of a few numbers of rows. The cost
table decides which: as few as possible, while no rounding adds more than a small share of steps or seconds. Widths that
come often, as where most batches have a sequence near the longest, are not rounded up: few shapes, and most batches
then compute no step that order of arrival would not. The planner sees the rounding as cost (`BucketedCosts`). Admission
counts the rounded width, and metrics count the fillers.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.cost import CostTable
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import rounded_width

BatchShape = tuple[int, int]  # rows, width

DEVICE_ROWS: Final = 1024  # most that are measured on a device, and run where its cost table shows that they pay
DEVICE_STEPS: Final = 262_144
MOST_FIRST: Final = 64  # shapes that run before a request needs them,
BEFORE_READY: Final = 16  # and of these before the model is ready
_FIRST_ROWS, _FIRST_WIDTHS = 9, 7
MOST_ADDED: Final = 0.05  # by one rounding, as a share of the steps or the predicted seconds
_BLOCK: Final = 64  # arrivals, a small full batch of a device: their longest is about as wide as a batch
_BLOCKS: Final = 64  # a width that two of so many blocks have comes often
_FINE: Final = 256  # a width is known to one part in so many: neighbours of wide ones count as one


@dataclass(slots=True)
class Buckets:
    """The widths and the numbers of rows of batches that run."""

    widths: tuple[int, ...]  # ascending, at least one; in steps
    rows: tuple[int, ...]  # ascending, from 1
    limits: BatchLimits  # a full batch gets no filler
    multiple: int = 1
    min_length: int = 1  # of a filler: the shortest sequence that the model accepts
    _lengths: list[int] = field(default_factory=list, init=False)  # of the block that is not full
    _widest: tuple[int, ...] = field(default=(), init=False)  # of the last blocks, the latest first
    _with_frequent: tuple[int, ...] = field(default=(), init=False)  # the widths, and those that come often

    def width_of_arrival(self, length: int) -> int:
        """Counts a sequence that arrived, to learn which widths come often; returns its `width_of`."""
        lengths = self._lengths
        lengths.append(length)
        if len(lengths) >= _BLOCK:  # of several threads two may count a block
            self._lengths = []
            self._count_widest(max(lengths))
        return self.width_of(length)

    def width_of(self, length: int) -> int:
        """The width, in steps, of a batch whose longest sequence has this length."""
        widths = self._with_frequent or self.widths
        index = bisect_left(widths, length)
        return widths[index] if index < len(widths) else rounded_width(length, self.multiple)

    def _count_widest(self, length: int) -> None:
        """Counts the longest of a block; a width that comes often becomes one of the widths, and ceases to be."""
        width = rounded_width(length, self.multiple << (length // (_FINE * self.multiple)).bit_length())
        self._widest = (width, *self._widest[: _BLOCKS - 1])
        frequent = {width for width, count in Counter(self._widest).items() if count > 1 and width < self.widths[-1]}
        self._with_frequent = tuple(sorted(frequent.union(self.widths)))

    def rows_of(self, rows: int, width: int) -> int:
        """The number of rows, fillers included, of a batch of `rows` sequences at a width."""
        most = self.limits.most_rows(width)
        if rows >= most:
            return rows
        return min(self.rows[bisect_left(self.rows, rows)], most)

    def first_shapes(self, lengths: Sequence[float] = ()) -> list[BatchShape]:
        """The shapes to run before a request needs them, at most `MOST_FIRST`: the largest, then few rows before many.

        Of widths and of rows each some, evenly spread; of the widths only those of the `lengths` that are expected.
        """
        expected = sorted({self.width_of(min(int(length), self.widths[-1])) for length in lengths}) or self.widths
        evenly = itertools.product(_spread(self.rows, _FIRST_ROWS), _spread(expected, _FIRST_WIDTHS))
        first = dict.fromkeys((min(rows, self.limits.most_rows(width)), width) for rows, width in evenly)
        shapes = self.shapes()
        return shapes if len(shapes) <= MOST_FIRST else [*dict.fromkeys((shapes[0], *sorted(first)))]

    def shapes(self) -> list[BatchShape]:
        """Every (rows, width) that a batch can have before a width comes often, the largest first."""
        most_rows = [(width, self.limits.most_rows(width)) for width in self.widths]
        shapes = [
            (rows, width) for width, most in most_rows for rows in (*self.rows[: bisect_left(self.rows, most)], most)
        ]
        return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]), reverse=True)


def lowered(cost: CostTable, limits: BatchLimits) -> BatchLimits:
    """The fewest rows, and the fewest steps, with which batches of every width are about as cheap a row as can be."""
    most = [
        (min(cost.column(width, limits.rows).enough_rows, limits.most_rows(width)), width) for width in cost.grid_widths
    ]
    steps = max(rows * width for rows, width in most)
    return replace(limits, rows=max(rows for rows, _ in most), padded_steps=steps)


def choose(
    cost: CostTable,
    limits: BatchLimits,
    *,
    max_length: int,
    min_length: int = 1,
    multiple: int = 1,
    most_added: float = MOST_ADDED,
) -> Buckets:
    """The fewest widths and rows for which no rounding adds more than `most_added` to the steps or the seconds."""
    narrowest, widest = rounded_width(min_length, multiple), rounded_width(max_length, multiple)
    middle = max(narrowest, min(widest, limits.padded_steps // limits.rows))
    every_width = range(narrowest, widest + 1, multiple)
    widths = _fewest(every_width, lambda width: cost.predict(limits.most_rows(width), width), most_added)
    rows = _fewest(range(1, limits.rows + 1), lambda rows: cost.predict(rows, middle), most_added)
    measured = [count for count in cost.rows.tolist() if count <= limits.rows]  # a step in the costs is at one of them
    return Buckets(widths, tuple(sorted({*rows, *measured})), limits, multiple, min_length)


def _nearness(points: NDArray[np.int64], point: int) -> NDArray[np.float64]:
    """1 at a point, 0 at half and twice of it, on a line between in their logarithms."""
    return np.asarray(np.maximum(0.0, 1 - np.abs(np.log2(points / point))), dtype=np.float64)


def _spread(points: Sequence[int], most: int) -> Sequence[int]:
    """At most `most` of the points, evenly chosen, with the first and the last."""
    return [points[index] for index in sorted({*np.linspace(0, len(points) - 1, most).round().astype(int).tolist()})]


def _fewest(points: Sequence[int], seconds: Callable[[int], float], most_added: float) -> tuple[int, ...]:
    """The fewest of ascending points to which rounding up adds at most `most_added`; chosen from the largest down."""
    chosen = [points[-1]]
    for point in reversed(points):
        above = chosen[-1]
        if max(above / point, seconds(above) / seconds(point)) > 1 + most_added:
            chosen.append(point)
    return tuple(reversed(chosen))


class BucketedCosts(CostTable):
    """A measured cost table whose predictions include the filler rows.

    Few of its times were measured, so serving corrects them: each run moves those of similar rows and width.
    """

    def __init__(self, table: CostTable, buckets: Buckets) -> None:
        super().__init__(table.rows.tolist(), table.widths.tolist(), table.seconds, clock=table.clock)
        self._buckets = buckets
        self._ran: set[BatchShape] = set()
        self._filled: dict[tuple[int, int], list[int]] = {}  # rows with fillers, by most of a width and of a column
        for width in buckets.widths:  # now, at load, and not in a decision
            self.column(width, buckets.limits.rows)

    def observe(self, rows: int, width: int, seconds: float, valid_steps: int | None = None) -> None:
        """See `CostTable.observe`; the first run of a shape is slow, and not counted."""
        if (rows, width) not in self._ran:
            self._ran.add((rows, width))
            return
        with self.learning:
            super().observe(rows, width, seconds, valid_steps)
            near = _nearness(self.rows, rows)[:, None] * _nearness(self.widths, width)
            self.correct(near, seconds / self.predict(rows, width))

    def computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `CostTable.computed`; a number of rows costs what its bucket of rows costs."""
        key = self._buckets.limits.most_rows(width), rows
        filled = self._filled.get(key)
        if filled is None:
            filled = self._filled[key] = [self._buckets.rows_of(count, width) for count in range(1, rows + 1)]
        exact = super().computed(width, filled[-1], seconds)
        return np.asarray(exact[np.subtract(filled, 1)], dtype=np.float64)
