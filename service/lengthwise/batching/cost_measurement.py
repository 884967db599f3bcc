"""Measures a cost table: runs the shapes of a grid that say most about the others, and fills in those between them.

```
one row and the most, the narrowest and the widest ─> the number of rows, at one width ─> the other widths, where they
surprise ─> what is left, cheapest first ─> each shape again, in turns, until the time or the runs are used
```

A device and a processor differ most in what a further row costs: nothing up to some hundred rows, or as much as the
first, or a step at each multiple. So the rows are measured closely at one width, the *reference*. Other widths follow
it: between two numbers of rows that were measured at a width, time grows as it does between the same two at the
reference. A width that was not measured lies on the line between its neighbours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.cost import SHORTEST_SECONDS, CostTable

MOST_RUNS: Final = 60  # of a device: each first run of a shape there is slow
FAILED_SECONDS: Final = 3600.0  # of a shape that cannot run: no batch has it
_ROUNDS: Final = 5  # no new shape is run once a round of all would take this part of the time
_WIDEST_SHARE: Final = 0.4  # of a round, for one shape
_LONGER: Final = 4.0  # the reference takes so many times as long as the narrowest width: its steps outweigh its launch
# The log of how wrong a time may be: what lies between two measured ones is measured while that is in doubt.
_MOST_DOUBT: Final = 0.06
_DOUBT_OF_ROWS: Final = 0.64  # before anything is known of the reference
_DOUBT_OF_WIDTHS: Final = 0.12
_MOST_JUMP: Final = 2.0  # over the rows: what takes longer was disturbed
_LINE_TOLERANCE: Final = 0.1  # a line over the widths replaces measured times that are all within this share of it
_LINE_POINTS: Final = 4  # least measured widths for a line
_BY_ROWS: Final = 0.02  # share of the rows in what times grow with, for where the reference does not grow

GridPoint = tuple[int, int]  # the indices of a number of rows and of a width


def grid(largest: int, *, smallest: int = 1) -> list[int]:
    """Powers of two from `smallest`, and `largest` itself."""
    points = []
    point = smallest
    while point < largest:
        points.append(point)
        point *= 2
    return [*points, largest]


def rows_grid(largest: int) -> list[int]:
    """Powers of two and 1.5 times those, and `largest`: matrix products are often cheapest at 6 or 12 rows."""
    points = grid(largest)
    return sorted({*points, *(3 * point // 2 for point in points[1:] if 3 * point // 2 <= largest)})


def measure(
    run: Callable[[int, int], object],
    *,
    max_rows: int,
    max_width: int,
    max_padded_steps: int,
    min_width: int | None = None,
    multiple: int = 4,
    budget_seconds: float = 1.0,
    most_runs: int | None = MOST_RUNS,
    clock: Callable[[], float] = time.thread_time,
    valid_steps_only: bool = False,
) -> CostTable:
    """Measures a table by `run(rows, width)`, the fastest of several runs of each shape, within the time and the runs.

    1. A shape is run twice when it is new. Afterwards all are run in turns, so that a busy period slows all of them. If
       it slowed only the small ones, the planner would make every batch too large.
    2. A shape that took longer than a larger one was disturbed: it gets the larger one's time.
    3. Times of one number of rows that lie on a line over the widths, as a recurrent model's do, are replaced by the
       line.
    4. A shape that was not run is filled in from its neighbours on both sides (see the module).

    A device (`most_runs`) runs few shapes, those that tell most of the others; a processor (None) all that there is
    time for, small ones first. After a MemoryError, shapes of more steps than any that ran cost
    `FAILED_SECONDS`.

    `budget_seconds` are on `clock`; `valid_steps_only`: see `CostTable`.
    """
    narrowest = min_width or multiple
    times = _Times(rows_grid(max_rows), grid(max(max_width, narrowest), smallest=narrowest), max_padded_steps)
    remaining = math.inf if most_runs is None else float(most_runs)
    shapes: list[GridPoint] = []
    end = clock() + budget_seconds

    def run_shape(i: int, j: int) -> bool:
        """Runs a shape, and returns whether there is time for more.

        Raises:
            MemoryError: Even the first shape does not fit into memory.
        """
        nonlocal remaining
        before = clock()
        try:
            run(int(times.rows[i]), int(times.widths[j]))
        except MemoryError:
            if not shapes:
                raise
            times.fails[i:, j:] = True
        now, remaining = clock(), remaining - 1
        # A shape's first run is slow, and is not counted; only the very first shape has a time from then on.
        if ((i, j) in shapes or not shapes) and not times.fails[i, j]:
            times.seconds[i, j] = np.fmin(times.seconds[i, j], max(now - before, SHORTEST_SECONDS))
        return now <= end and remaining > 0

    more = True
    for i, j in times.by_doubt(budget_seconds / _ROUNDS, thoroughly=most_runs is None):
        more = run_shape(i, j)  # the first run of a shape is slow on a device, and does not count
        if (more or not shapes) and not times.fails[i, j]:
            shapes.append((i, j))
            more = more and run_shape(i, j)
        if not more or remaining < len(shapes):
            break
    while more and shapes:
        more = all(run_shape(i, j) for i, j in shapes)
    rows, widths = times.rows.tolist(), times.widths.tolist()
    return CostTable(rows, widths, times.filled(), valid_steps_only=valid_steps_only, clock=clock)


class _Times:
    """The fastest run of each shape of a grid (NaN where none ran), and the times of other shapes that follow."""

    def __init__(self, rows: list[int], widths: list[int], max_padded_steps: int) -> None:
        self.rows, self.widths = np.asarray(rows), np.asarray(widths)
        self.seconds = np.full((len(rows), len(widths)), np.nan)
        self.fails = np.full(self.seconds.shape, False)
        within = np.outer(self.rows, self.widths) <= max_padded_steps
        within[0, 0] = True  # a lone step is run, whatever the limits are
        self._tops = (within.sum(axis=0) - 1).tolist()  # of each width, the index of the most rows; -1 for none
        self._last = max(j for j, top in enumerate(self._tops) if top >= 0)
        self._corners: tuple[GridPoint, ...] = (
            (0, 0),
            (self._tops[0], 0),
            (0, self._last),
        )  # run however long they take
        self._reference = 0

    def by_doubt(self, round_seconds: float, *, thoroughly: bool) -> Iterator[GridPoint]:
        """Each shape to run, once the ones before have run, while a round of all takes `round_seconds` at most."""
        cheapest = np.argsort(np.outer(self.rows, self.widths), axis=None, kind="stable").tolist()
        small_first = chain(self._corners, (divmod(at, len(self.widths)) for at in cheapest))
        for i, j in small_first if thoroughly else self._shapes(round_seconds):
            if i > self._tops[j]:
                continue
            if np.isnan(self.seconds[i, j]) and not self.fails[i, j]:
                most = _WIDEST_SHARE * round_seconds  # one that was underestimated leaves time for others
                rest = round_seconds - np.nansum(np.minimum(self.seconds, most / 2))
                if (i, j) in self._corners or self.filled()[i, j] <= min(rest, most):
                    yield i, j

    def _shapes(self, round_seconds: float) -> Iterator[GridPoint]:
        """The shapes to run on a device: the corners, the reference, then what is most in doubt."""
        seconds, tops, last = self.seconds, self._tops, self._last
        yield from self._corners
        for j in range(2, last + 1, 2):  # to the first width whose steps outweigh the launch
            if tops[j] < tops[0] or 4 * np.nanmax(seconds[:, :j]) > _WIDEST_SHARE * round_seconds:
                break
            yield from ((tops[j], j), (0, j))
            self._reference = j
            if not seconds[tops[j], j] < _LONGER * seconds[tops[0], 0]:
                break
        yield tops[last], last
        order = dict.fromkeys((self._reference, 0, last, *_halves(0, last)))
        gaps = [(_DOUBT_OF_ROWS if j == self._reference else _DOUBT_OF_WIDTHS, 0, tops[j], j) for j in order]
        while gaps:
            gap = max(gaps, key=lambda gap: (gap[-1] == self._reference, gap[0]))
            gaps.remove(gap)
            doubt, low, high, j = gap
            missing, before = [i for i in (high, low) if np.isnan(seconds[i, j])], self.filled()
            i = missing[0] if missing else (low + high) // 2
            if not missing and (i == low or math.log(before[high, j] / before[low, j]) <= _MOST_DOUBT):
                continue
            yield i, j
            if np.isnan(seconds[i, j]):  # there is no time for it: perhaps for fewer rows
                gaps[:0] = [(doubt, low, (low + high) // 2, j)] if high - low > 1 else []
                continue
            doubt = max(doubt / 2, abs(math.log(seconds[i, j] / before[i, j])))
            if doubt > _MOST_DOUBT:
                gaps += [(doubt, low, high, j)] if i in (low, high) else [(doubt, low, i, j), (doubt, i, high, j)]

    def filled(self) -> NDArray[np.float64]:
        """`[rows, widths]`: the times of the whole grid; `[0, 0]` must have been run."""
        seconds = self.seconds
        of_larger = np.fmin.accumulate(np.fmin.accumulate(seconds[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
        measured = np.where(np.isfinite(seconds), of_larger, np.nan)
        for column in measured.T:
            for fewer, more in pairwise(np.flatnonzero(np.isfinite(column))):
                column[more] = min(column[more], _MOST_JUMP * column[fewer] * self.rows[more] / self.rows[fewer])
        measured = _fitted_to_lines(self.widths, measured)
        grown = np.maximum.accumulate(_along(self.rows, measured[:, self._reference]))
        grown = grown + _BY_ROWS * grown[-1] * self.rows / self.rows[-1]
        filled = np.full_like(measured, np.nan)
        columns = [(j, np.flatnonzero(np.isfinite(column))) for j, column in enumerate(measured.T)]
        for j, known in columns:
            if len(known) and not known[0]:  # from one row to the most that ran
                ran = slice(known[-1] + 1)
                filled[ran, j] = np.interp(grown[ran], grown[known], measured[known, j])
        lines, between = self._on_lines(filled), filled.copy()
        for j, known in columns:  # the rows that did not run at a width are as far off the line of the other widths
            past = len(known) > 0 and known[0] > 0
            off = {i: measured[i, j] / beside for i in known if (beside := self._beside(between[i], j, past=past))}
            first = 0 if past or not off else known[-1] + 1
            rest = [i for i in range(first, len(lines)) if off and self._beside(between[i], j, past=past)]
            filled[rest, j] = lines[rest, j] * np.interp(rest, [*off], [*off.values()]) if rest else filled[rest, j]
        steps = np.outer(self.rows, self.widths)
        too_many = self.fails.any() & (steps > steps[np.isfinite(seconds)].max())
        return np.where(too_many, FAILED_SECONDS, np.maximum(self._on_lines(filled), SHORTEST_SECONDS))

    def _beside(self, row: NDArray[np.float64], j: int, *, past: bool) -> float:
        """What other widths say of width `j` in a row with gaps; 0 if they do not lie around it, unless also `past`."""
        others = np.where(np.arange(len(row)) == j, np.nan, row)
        sides = np.isfinite(others[:j]).any(), np.isfinite(others[j:]).any() or past
        return float(_along(self.widths, others)[j]) if all(sides) else 0.0

    def _on_lines(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gaps of each row filled on lines over the widths; past the last, at least as fewer rows grow."""
        filled = seconds.copy()
        filled[0] = _along(self.widths, filled[0])
        for i in range(1, len(filled)):
            known = np.flatnonzero(np.isfinite(filled[i]))
            last = known[-1] if len(known) else 0
            more = filled[i, last] / filled[i - 1, last] if len(known) else self.rows[i] / self.rows[i - 1]
            as_fewer = more * filled[i - 1]
            line = _along(self.widths, filled[i]) if len(known) > 1 else as_fewer
            filled[i] = np.where(self.widths > self.widths[last], np.maximum(line, as_fewer), line)
        return filled


def _halves(low: int, high: int) -> Iterator[int]:
    """The numbers between two in the order of a binary search: the middle, then those of both halves."""
    spans = [(low, high)]
    for low, high in spans:
        if high - low > 1:
            yield (middle := (low + high) // 2)
            spans += [(low, middle), (middle, high)]


def _along(points: NDArray[np.float64] | NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` at ascending `points`, with those that are NaN on the lines between and past the others."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) == 1:
        return np.asarray(values[known[0]] * np.maximum(1.0, points / points[known[0]]))
    on_slope = values[known[-1]] + (points - points[known[-1]]) * (
        (values[known[-1]] - values[known[-2]]) / (points[known[-1]] - points[known[-2]])
    )
    return np.where(points > points[known[-1]], on_slope, np.interp(points, points[known], values[known]))


def _fitted_to_lines(widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[rows, widths]`: the times of each number of rows, replaced by a line where one fits; NaN stays NaN."""
    straight = seconds.copy()
    for row in straight:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) < _LINE_POINTS:
            continue
        steps, times = widths[known], row[known]
        fixed, slope = np.linalg.lstsq(np.stack([1 / times, steps / times], axis=1), np.ones(len(known)))[0]
        if fixed < 0:
            fixed, slope = 0.0, (steps / times).sum() / np.square(steps / times).sum()
        line = fixed + slope * steps
        if slope > 0 and (np.abs(line / times - 1) <= _LINE_TOLERANCE).all():
            row[known] = line
    return straight
