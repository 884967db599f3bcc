"""Measures a cost table: runs the shapes of a grid that say most about the others, and fills in those between them.

A *shape* is a number of rows and a width; in code, the indices `i, j` of a point of the grid. On a device:

1. Corners: one row and the most, at the narrowest and the widest width.
2. The *reference*: the numbers of rows at one width.
3. Other widths, where they differ from what the reference predicts.
4. Each shape again, in turns, until the time or the runs are used.

On a processor, steps 2 and 3 are all shapes, the smallest first.

A device and a processor differ most in what a further row costs: nothing up to some hundred rows, or as much as the
first, or a step at each multiple. So the rows are measured closely at the reference. Other widths follow it: between
two numbers of rows that were measured at a width, time grows as it does between the same two at the reference. A width
that was not measured lies on the line between its neighbours.
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
FAILED_SECONDS: Final = 3600.0  # of a shape that cannot run: so dear that no batch has it
_ROUNDS: Final = 5  # in the budget of time, all chosen shapes can run so many times: no further shape is chosen then
_WIDEST_SHARE: Final = 0.4  # most that one shape may take of such a round
_LONGER: Final = 4.0  # the reference takes so many times as long as the narrowest width: its steps outweigh its launch
# A doubt is the log of how wrong a predicted time may be. Between two measured ones is measured while it is too large.
_MOST_DOUBT: Final = 0.06  # larger than this
_DOUBT_OF_ROWS: Final = 0.64  # at first, at the reference
_DOUBT_OF_WIDTHS: Final = 0.12  # at first, at other widths
_MOST_JUMP: Final = 2.0  # a row may cost so many times as much as with fewer rows: more was a disturbance
_LINE_TOLERANCE: Final = 0.1  # a line over the widths replaces measured times that are all within this share of it
_LINE_POINTS: Final = 4  # fewest measured widths for a line
_BY_ROWS: Final = 0.02  # a time grows by this share with the rows, where the reference does not grow

GridPoint = tuple[int, int]  # the indices of a number of rows and of a width


def grid(largest: int, *, smallest: int = 1) -> list[int]:
    """`smallest` times the powers of two, up to `largest`, and that itself."""
    count = ((largest - 1) // smallest).bit_length()  # of the numbers `smallest * 2**n` that are below `largest`
    return [*(smallest << n for n in range(count)), largest]


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
    """Measures a cost table by calls of `run(rows, width)`, within `budget_seconds` and `most_runs`.

    The seconds of a shape are those of the fastest of its runs.

    1. A shape is run twice when it is new. Afterwards all are run in turns, so that a busy period slows all of them. If
       it slowed only the small ones, the planner would make every batch too large.
    2. A shape that took longer than a larger one was disturbed: it gets the larger one's time.
    3. Times of one number of rows that lie on a line over the widths, as a recurrent model's do, are replaced by the
       line.
    4. A shape that was not run is filled in from its neighbours on both sides (see the module).

    A device (`most_runs`) runs few shapes, those that tell most of the others; a processor (None) all that there is
    time for, small ones first. After a MemoryError, shapes of more steps than any that ran cost `FAILED_SECONDS`.

    `budget_seconds` are on `clock`; `valid_steps_only`: see `CostTable`.
    """
    narrowest = min_width or multiple
    times = _Times(rows_grid(max_rows), grid(max(max_width, narrowest), smallest=narrowest), max_padded_steps)
    remaining = math.inf if most_runs is None else float(most_runs)  # runs
    shapes: list[GridPoint] = []  # that ran once, and did not fail
    end = clock() + budget_seconds

    def run_shape(i: int, j: int) -> bool:
        """Runs a shape, and keeps its time if it is the fastest; returns whether there is time for another run.

        Raises:
            MemoryError: Even the first shape does not fit into memory.
        """
        nonlocal remaining
        start = clock()
        try:
            run(int(times.rows[i]), int(times.widths[j]))
        except MemoryError:
            if not shapes:
                raise
            times.fails[i:, j:] = True  # nor does any larger shape fit
        now, remaining = clock(), remaining - 1
        # A shape's first run is slow, and is not counted; but the very first shape must have a time.
        if ((i, j) in shapes or not shapes) and not times.fails[i, j]:
            times.seconds[i, j] = np.fmin(times.seconds[i, j], max(now - start, SHORTEST_SECONDS))
        return now <= end and remaining > 0

    # 1. Each chosen shape twice. `shapes_to_run` chooses the next by the times so far.
    may_run = True
    for i, j in times.shapes_to_run(budget_seconds / _ROUNDS, all_shapes=most_runs is None):
        may_run = run_shape(i, j)
        if (may_run or not shapes) and not times.fails[i, j]:
            shapes.append((i, j))
            may_run = may_run and run_shape(i, j)
        if not may_run or remaining < len(shapes):  # fewer runs remain than for another turn of all
            break
    # 2. All shapes in turns, while there is time.
    while may_run and shapes:
        may_run = all(run_shape(i, j) for i, j in shapes)
    rows, widths = times.rows.tolist(), times.widths.tolist()
    return CostTable(rows, widths, times.filled(), valid_steps_only=valid_steps_only, clock=clock)


class _Times:
    """The fastest run of each shape of a grid, and the times of the other shapes that follow from them.

    The caller writes `seconds` and `fails` while it iterates over `shapes_to_run`.
    """

    def __init__(self, rows: list[int], widths: list[int], max_padded_steps: int) -> None:
        self.rows, self.widths = np.asarray(rows), np.asarray(widths)  # of the grid, ascending
        self.seconds = np.full((len(rows), len(widths)), np.nan)  # of the fastest run; NaN if none ran
        self.fails = np.full(self.seconds.shape, False)  # too large for the memory
        within = np.outer(self.rows, self.widths) <= max_padded_steps
        within[0, 0] = True  # a lone step is run, whatever the limits are
        self._tops = (within.sum(axis=0) - 1).tolist()  # of each width, the index of the most rows; -1 for none
        self._last = max(j for j, top in enumerate(self._tops) if top >= 0)  # the widest width that runs
        # These run, however long they take.
        self._corners: tuple[GridPoint, ...] = ((0, 0), (self._tops[0], 0), (0, self._last))
        self._reference = 0  # the index of its width

    def shapes_to_run(self, round_seconds: float, *, all_shapes: bool) -> Iterator[GridPoint]:
        """Each shape to run next, while a round of all that ran takes `round_seconds` at most.

        A generator, which reads the times of the shapes before: the caller runs a shape before it asks for the next.
        `all_shapes`: the smallest first, on a processor; otherwise few, as `_device_shapes` chooses.
        """
        smallest_first = np.argsort(np.outer(self.rows, self.widths), axis=None, kind="stable").tolist()
        every_shape = chain(self._corners, (divmod(index, len(self.widths)) for index in smallest_first))
        for i, j in every_shape if all_shapes else self._device_shapes(round_seconds):
            if i <= self._tops[j] and np.isnan(self.seconds[i, j]) and not self.fails[i, j]:
                longest = _WIDEST_SHARE * round_seconds  # one that was underestimated leaves time for others
                remaining = round_seconds - np.nansum(np.minimum(self.seconds, longest / 2))
                if (i, j) in self._corners or self.filled()[i, j] <= min(remaining, longest):
                    yield i, j

    def _device_shapes(self, round_seconds: float) -> Iterator[GridPoint]:
        """The shapes to run on a device: the corners, the reference, then those whose times are most in doubt.

        A *gap* `(doubt, low, high, j)` lies between the numbers of rows `low` and `high` of the width `j` (indices).
        Its ends are measured first, then its middle. A middle that took longer or shorter than was predicted leaves two
        gaps in doubt.
        """
        seconds, tops, last = self.seconds, self._tops, self._last
        # 1. Corners, and other widths until one is fit to be the reference.
        yield from self._corners
        for j in range(2, last + 1, 2):  # to the first width whose steps outweigh the launch
            if tops[j] < tops[0] or 4 * np.nanmax(seconds[:, :j]) > _WIDEST_SHARE * round_seconds:
                break
            yield from ((tops[j], j), (0, j))
            self._reference = j
            if not seconds[tops[j], j] < _LONGER * seconds[tops[0], 0]:
                break
        yield tops[last], last
        # 2. The gaps of the reference, then those of the other widths, the most doubtful first.
        order = dict.fromkeys((self._reference, 0, last, *_halves(0, last)))
        gaps = [(_DOUBT_OF_ROWS if j == self._reference else _DOUBT_OF_WIDTHS, 0, tops[j], j) for j in order]
        while gaps:
            gap = max(gaps, key=lambda gap: (gap[-1] == self._reference, gap[0]))
            gaps.remove(gap)
            doubt, low, high, j = gap
            missing_ends, predicted = [i for i in (high, low) if np.isnan(seconds[i, j])], self.filled()
            i = missing_ends[0] if missing_ends else (low + high) // 2
            if not missing_ends and (i == low or math.log(predicted[high, j] / predicted[low, j]) <= _MOST_DOUBT):
                continue  # no row between the ends, or times that differ too little to matter
            yield i, j
            if np.isnan(seconds[i, j]):  # there is no time for it: perhaps for fewer rows
                gaps[:0] = [(doubt, low, (low + high) // 2, j)] if high - low > 1 else []
                continue
            doubt = max(doubt / 2, abs(math.log(seconds[i, j] / predicted[i, j])))  # half, or how wrong it was
            if doubt > _MOST_DOUBT:
                gaps += [(doubt, low, high, j)] if i in (low, high) else [(doubt, low, i, j), (doubt, i, high, j)]

    def filled(self) -> NDArray[np.float64]:
        """`[rows, widths]`: the seconds of the whole grid, measured or predicted; `[0, 0]` must have been run."""
        seconds = self.seconds
        # 1. Disturbed times: none is longer than that of a larger shape, or jumps from fewer rows to more.
        shortest_of_larger = np.fmin.accumulate(np.fmin.accumulate(seconds[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
        measured = np.where(np.isfinite(seconds), shortest_of_larger, np.nan)
        for column in measured.T:
            for fewer, more in pairwise(np.flatnonzero(np.isfinite(column))):
                column[more] = min(column[more], _MOST_JUMP * column[fewer] * self.rows[more] / self.rows[fewer])
        measured = _fitted_to_lines(self.widths, measured)
        # 2. Between the rows that ran at a width, times grow as at the reference.
        reference = np.maximum.accumulate(_on_line(self.rows, measured[:, self._reference]))
        reference = reference + _BY_ROWS * reference[-1] * self.rows / self.rows[-1]
        between = np.full_like(measured, np.nan)
        known = np.isfinite(measured)
        columns = [(j, np.flatnonzero(known[:, j])) for j in np.flatnonzero(known.any(axis=0))]
        for j, measured_rows in columns:
            if not measured_rows[0]:  # one row ran: from there to the most that ran
                ran = slice(measured_rows[-1] + 1)
                between[ran, j] = np.interp(reference[ran], reference[measured_rows], measured[measured_rows, j])
        # 3. Rows that did not run at a width: the line of the other widths, times how far measured rows are off it.
        lines, filled = self._on_lines(between), between.copy()
        for j, measured_rows in columns:
            only_many_rows = measured_rows[0] > 0  # one row did not run, as at the widest width
            by_others = {
                i: self._by_other_widths(between[i], j, may_extrapolate=only_many_rows) for i in range(len(lines))
            }
            ratios = {i: measured[i, j] / by_others[i] for i in measured_rows if by_others[i]}
            first = 0 if only_many_rows or not ratios else measured_rows[-1] + 1
            if ratios and (gaps := [i for i in range(first, len(lines)) if by_others[i]]):
                filled[gaps, j] = lines[gaps, j] * np.interp(gaps, [*ratios], [*ratios.values()])
        # 4. The rest on lines; what is larger than any shape that ran fails too.
        steps = np.outer(self.rows, self.widths)
        too_many = self.fails.any() & (steps > steps[np.isfinite(seconds)].max())
        return np.where(too_many, FAILED_SECONDS, np.maximum(self._on_lines(filled), SHORTEST_SECONDS))

    def _by_other_widths(self, row: NDArray[np.float64], j: int, *, may_extrapolate: bool) -> float:
        """The seconds that the line of the other widths of a row (NaN: not known) has at width `j`.

        0 if narrower or wider ones are not known; with `may_extrapolate`, only if narrower ones are not.
        """
        others = np.where(np.arange(len(row)) == j, np.nan, row)
        narrower, wider = np.isfinite(others[:j]).any(), np.isfinite(others[j:]).any()
        return float(_on_line(self.widths, others)[j]) if narrower and (wider or may_extrapolate) else 0.0

    def _on_lines(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """A copy of `seconds [rows, widths]`, each row's gaps (NaN) filled on lines over the widths.

        Past its last known width, a row grows at least as the row before does.
        """
        filled = seconds.copy()
        filled[0] = _on_line(self.widths, filled[0])
        for i in range(1, len(filled)):
            known = np.flatnonzero(np.isfinite(filled[i]))
            last = known[-1] if len(known) else 0
            ratio = filled[i, last] / filled[i - 1, last] if len(known) else self.rows[i] / self.rows[i - 1]
            as_row_before = ratio * filled[i - 1]
            line = _on_line(self.widths, filled[i]) if len(known) > 1 else as_row_before
            filled[i] = np.where(self.widths > self.widths[last], np.maximum(line, as_row_before), line)
        return filled


def _halves(low: int, high: int) -> Iterator[int]:
    """The numbers between two in the order of a binary search: the middle, then those of both halves."""
    spans = [(low, high)]
    for low, high in spans:
        if high - low > 1:
            yield (middle := (low + high) // 2)
            spans += [(low, middle), (middle, high)]


def _on_line(points: NDArray[np.float64] | NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` at ascending `points`, with NaN replaced by linear interpolation between the known ones.

    Before the first known point its value; past the last one the last slope, or in proportion to the points if only one
    value is known.
    """
    known = np.flatnonzero(np.isfinite(values))
    last = known[-1]
    if len(known) == 1:
        return np.asarray(values[last] * np.maximum(1.0, points / points[last]))
    slope = (values[last] - values[known[-2]]) / (points[last] - points[known[-2]])
    past_last = values[last] + (points - points[last]) * slope
    return np.where(points > points[last], past_last, np.interp(points, points[known], values[known]))


def _fitted_to_lines(widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """A copy of `seconds [rows, widths]`: a row whose times are near a line over the widths is on the line.

    The line `fixed + slope * width`, with both at least 0, has the smallest relative errors (least squares). NaN stays.
    """
    fitted = seconds.copy()
    for row in fitted:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) < _LINE_POINTS:
            continue
        steps, times = widths[known], row[known]
        fixed, slope = np.linalg.lstsq(np.stack([1 / times, steps / times], axis=1), np.ones(len(known)))[0]
        if fixed < 0:  # least squares again, of a line through 0
            fixed, slope = 0.0, (steps / times).sum() / np.square(steps / times).sum()
        line = fixed + slope * steps
        if slope > 0 and (np.abs(line / times - 1) <= _LINE_TOLERANCE).all():
            row[known] = line
    return fitted
