"""The batch shapes that run on a device: few enough that each runs once before the model serves.

On a device, memory grows with every new shape, and libraries choose their kernels by shape. So widths are rounded up to
one of a few, and batches are filled up with short rows of zeros (*fillers*) to one of a few numbers of rows. The cost
table decides which: as few as possible, while no rounding adds more than `MOST_ADDED` to the steps or the seconds.

A *frequent* width, which many batches have as their longest sequence, is not rounded up. There are few frequent widths,
so there are still few shapes, and most batches are no wider than without buckets. The planner sees the rounding as cost
(`BucketedCosts`). Admission counts the rounded width, and metrics count the fillers.
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

from lengthwise.batching.cost import CostTable, interpolated
from lengthwise.batching.limits import BatchLimits
from lengthwise.padding import PaddedBatch, RowInput, Sample, longest_of, pad, rounded_width

BatchShape = tuple[int, int]  # rows, width

DEVICE_ROWS: Final = 1024  # most that are measured on a device, and run where its cost table shows that they pay
DEVICE_STEPS: Final = 262_144  # rows x width: the same
MOST_FIRST: Final = 64  # so many shapes run before a request needs them,
BEFORE_READY: Final = 4  # and so many of these before the model is ready: more do not shorten the first waits
_FIRST_ROWS, _FIRST_WIDTHS = 9, 7  # of these shapes: how many numbers of rows and how many widths
MOST_ADDED: Final = 0.05  # by one rounding, as a share of the steps or the predicted seconds
_ROWS_SHARE: Final = 0.8  # of that, for rows: where a batch takes the whole queue, these are rounded in each batch
_BLOCK: Final = 64  # arrivals in a block, as in a small full batch of a device: so its longest is like a batch's width
_BLOCKS: Final = 64  # a width is frequent if it is the longest in at least two of so many blocks
_CORRECTION_WEIGHT: Final = 0.1  # of one run, in the times of shapes like its own
_CORRECTED_RUNS: Final = 16  # after so many the columns are computed again,
_CORRECTION_STEP: Final = 0.05  # but only if the log of a time has changed by more than this
_FINE: Final = 256  # longest lengths that differ by less than about one part in so many count as one width


def padded(
    sequences: Sequence[RowInput], buckets: Buckets | None, multiple: int, blank: Sample | None = None
) -> PaddedBatch:
    """Pads sequences to a batch: its width is a multiple; with buckets, it has one of their shapes, with fillers.

    `blank`: see `padding.pad`.
    """
    if buckets is None:
        return pad(sequences, multiple=multiple, blank=blank)
    width = buckets.padded_width(max(map(longest_of, sequences)))
    rows = buckets.rows_of(len(sequences), width)
    if blank is not None and blank.others:  # each sequence has a width of its own
        return pad(sequences, multiple=multiple, rows=rows, filler_length=buckets.min_length, blank=blank)
    return pad(sequences, width=width, rows=rows, filler_length=buckets.min_length, blank=blank)


@dataclass(slots=True)
class Buckets:
    """The widths and the numbers of rows of batches that run. A batch of any other shape is rounded up to these."""

    widths: tuple[int, ...]  # ascending, at least one; in steps
    rows: tuple[int, ...]  # ascending, from 1
    limits: BatchLimits  # a full batch gets no filler
    multiple: int = 1  # of the widths, for those past the widest too
    min_length: int = 1  # of a filler: the shortest sequence that the model accepts
    _lengths: list[int] = field(default_factory=list, init=False)  # of the arrivals in the block that is not full
    _widest: tuple[int, ...] = field(default=(), init=False)  # of each of the last blocks, the latest first
    _with_frequent: tuple[int, ...] = field(default=(), init=False)  # `widths` and the frequent ones; at first none

    def width_of(self, length: int) -> int:
        """The width, in steps, of a batch whose longest sequence is this one, which arrived: it is counted.

        The frequent widths are learned from it, so each sequence is asked for once; see `padded_width`.
        """
        lengths = self._lengths
        lengths.append(length)
        if len(lengths) >= _BLOCK:  # without a lock: two threads may count the same block
            self._lengths = []
            self._count_block(max(lengths))
        return self.padded_width(length)

    def padded_width(self, length: int) -> int:
        """The width, in steps, of a batch whose longest sequence has this length."""
        widths = self._with_frequent or self.widths
        index = bisect_left(widths, length)
        return widths[index] if index < len(widths) else rounded_width(length, self.multiple)

    def _count_block(self, longest: int) -> None:
        """Counts a block of arrivals by its longest length; updates which widths are frequent."""
        # The multiple grows with the length, as a power of two of `self.multiple`.
        width = rounded_width(longest, self.multiple << (longest // (_FINE * self.multiple)).bit_length())
        self._widest = (width, *self._widest[: _BLOCKS - 1])
        frequent = {width for width, count in Counter(self._widest).items() if count > 1 and width < self.widths[-1]}
        self._with_frequent = tuple(sorted(frequent.union(self.widths)))

    def rows_of(self, rows: int, width: int) -> int:
        """The number of rows, fillers included, of a batch of `rows` sequences at a width."""
        row_limit = self.limits.most_rows(width)
        if rows >= row_limit:
            return rows
        return min(self.rows[bisect_left(self.rows, rows)], row_limit)

    def first_shapes(self, lengths: Sequence[float] = ()) -> list[BatchShape]:
        """The shapes to run before a request needs them: the largest first, then those of few rows before many.

        All shapes, if they are at most `MOST_FIRST`. Otherwise an evenly spread choice of numbers of rows and of
        widths; if `lengths` are expected, only of the widths that these have.
        """
        expected = sorted({self.padded_width(min(int(length), self.widths[-1])) for length in lengths}) or self.widths
        spread = itertools.product(_spread(self.rows, _FIRST_ROWS), _spread(expected, _FIRST_WIDTHS))
        chosen = dict.fromkeys((min(rows, self.limits.most_rows(width)), width) for rows, width in spread)
        shapes = self.shapes()
        return shapes if len(shapes) <= MOST_FIRST else [*dict.fromkeys((shapes[0], *sorted(chosen)))]

    def shapes(self) -> list[BatchShape]:
        """Every (rows, width) that a batch can have, frequent widths left out; the largest first."""
        row_limits = [(width, self.limits.most_rows(width)) for width in self.widths]
        shapes = [
            (rows, width)
            for width, row_limit in row_limits
            for rows in (*self.rows[: bisect_left(self.rows, row_limit)], row_limit)
        ]
        return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[0]), reverse=True)


def lowered(cost: CostTable, limits: BatchLimits) -> BatchLimits:
    """The limits with as few rows and steps as allow cheap batches (`Column.enough_rows`) at every width."""
    shapes = [
        (min(cost.column(width, limits.rows).enough_rows, limits.most_rows(width)), width) for width in cost.grid_widths
    ]
    return replace(
        limits, rows=max(rows for rows, _ in shapes), padded_steps=max(rows * width for rows, width in shapes)
    )


def choose(
    cost: CostTable,
    limits: BatchLimits,
    *,
    max_length: int,
    min_length: int = 1,
    multiple: int = 1,
    most_added: float = MOST_ADDED,
) -> Buckets:
    """The fewest widths and rows for which no rounding adds more than `most_added` to the steps or the seconds.

    Widths are compared in full batches; numbers of rows at the width of a full batch of `limits.padded_steps`. Rows
    add a little less (`_ROWS_SHARE`), so that both roundings together add less than `MOST_ADDED` on average.
    """
    narrowest, widest = rounded_width(min_length, multiple), rounded_width(max_length, multiple)
    width_of_rows = max(narrowest, min(widest, limits.padded_steps // limits.rows))
    every_width = range(narrowest, widest + 1, multiple)
    widths = _fewest(every_width, lambda width: cost.predict(limits.most_rows(width), width), most_added)
    rows = _fewest(range(1, limits.rows + 1), lambda rows: cost.predict(rows, width_of_rows), _ROWS_SHARE * most_added)
    measured = [count for count in cost.rows.tolist() if count <= limits.rows]  # costs may jump at a measured one
    return Buckets(widths, tuple(sorted({*rows, *measured})), limits, multiple, min_length)


def _nearness(points: NDArray[np.int64], center: int) -> NDArray[np.float64]:
    """For each point, 1 at the center, falling to 0 at half and at twice of it, linearly in the logarithm."""
    return np.asarray(np.maximum(0.0, 1 - np.abs(np.log2(points / center))), dtype=np.float64)


def _spread(points: Sequence[int], count: int) -> Sequence[int]:
    """At most `count` of the points, evenly chosen, with the first and the last."""
    return [points[index] for index in sorted({*np.linspace(0, len(points) - 1, count).round().astype(int).tolist()})]


def _fewest(points: Sequence[int], seconds: Callable[[int], float], most_added: float) -> tuple[int, ...]:
    """The fewest of ascending points such that rounding up to the next of them adds at most `most_added`.

    Added to the point itself, or to its `seconds`. A greedy choice, from the largest down.
    """
    chosen = [points[-1]]
    for point in reversed(points):
        rounded = chosen[-1]
        if max(rounded / point, seconds(rounded) / seconds(point)) > 1 + most_added:
            chosen.append(point)
    return tuple(reversed(chosen))


class BucketedCosts(CostTable):
    """A measured cost table whose predictions include the filler rows.

    Few of its times were measured, so serving corrects them: each run changes those of similar rows and width.
    """

    def __init__(self, table: CostTable, buckets: Buckets) -> None:
        super().__init__(
            table.rows.tolist(),
            table.widths.tolist(),
            table.seconds,
            padding_cost=table.padding_cost,
            clock=table.clock,
        )
        self._buckets = buckets
        self._ran: set[BatchShape] = set()
        # `[rows]`: the bucket of 1, 2, ... rows, but in full batches
        self._next_bucket = np.array(buckets.rows)[np.searchsorted(buckets.rows, np.arange(1, buckets.limits.rows))]
        for width in buckets.widths:  # now, at load, and not in a decision
            self.column(width, buckets.limits.rows)

    def measured_seconds(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """As `CostTable.measured_seconds`, with the corrections that the columns do not have yet."""
        charged_rows = self.charged_rows(rows, width, valid_steps)
        return max(1.0, charged_rows / int(self.rows[-1])) * float(
            np.interp(charged_rows, self.rows, interpolated(self.grid_widths, self._measured, width))
        )

    def observe(self, rows: int, width: int, seconds: float, valid_steps: int | None = None) -> float:
        """Learns from a run as `CostTable.observe` does, and corrects the times of similar shapes.

        The first run of a shape is slow on a device, and is ignored. Plans have the corrections once the columns are
        computed again, after `_CORRECTED_RUNS`: that takes milliseconds of Python.
        """
        if (rows, width) not in self._ran:
            self._ran.add((rows, width))
            return 0.0
        with self.learning:
            error = super().observe(rows, width, seconds, valid_steps)
            near = _nearness(self.rows, rows)[:, None] * _nearness(self.widths, width)
            self._measured = np.maximum.accumulate(
                np.maximum.accumulate(self._measured * np.exp(_CORRECTION_WEIGHT * error * near), axis=0), axis=1
            )
            times = self._measured + self._snapshot.overhead
            if not self.overhead.count % _CORRECTED_RUNS and (
                np.abs(np.log(times / self._snapshot.seconds)).max() > _CORRECTION_STEP
            ):
                self._renew(seconds=times)
        return error

    def computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """As `CostTable.computed`; a number of rows costs what its bucket of rows costs."""
        filled, row_limit = np.arange(1, rows + 1), self._buckets.limits.most_rows(width)
        filled[: row_limit - 1] = np.minimum(self._next_bucket[: row_limit - 1], row_limit)  # as `Buckets.rows_of`
        # Of 1, 2, ... rows without fillers, and of these the ones with fillers
        return np.asarray(super().computed(width, int(filled[-1]), seconds)[filled - 1], dtype=np.float64)
