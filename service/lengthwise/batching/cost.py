"""What a batch costs: seconds by rows and width, measured on the machine that serves.

The planner asks this table what company is worth. It is measured at load on a grid of shapes, made monotone (more rows
or more steps never cost less), and interpolated linearly between the grid's points, which fits recurrent models: their
time is linear in the width, and piecewise linear in the rows up to where the processor's vectors are full. Serving
refines it from real runs, in two figures: how much slower everything is than it was at load, and what a batch costs
besides, whatever its shape. A single hiccup moves either by a few percent at most.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Run = Callable[[int, int], object]
"""Runs one batch of `rows` by `width`, and returns when it is done."""

_HICCUP: Final = 0.7
"""Most that one run counts for, as a log ratio: twice or half of what was expected."""
_MEMORY: Final = 0.05
"""Share of a new run in what is remembered."""
_LONG_MEMORY: Final = 0.01
"""The same for what each batch costs besides, which is told from the differences between batches."""
_DOUBT: Final = 0.03
"""How alike batches may be in size, as the square of the share by which one deviates from their mean, before what each
costs besides is hardly believed."""
_FEW: Final = 10
"""Of how many batches little is believed, however they vary."""
_MOST_BESIDES: Final = 0.25
"""Most that each batch costs besides, as a share of the mean batch."""
_BELIEVED: Final = 0.5
"""Share of what is found besides that counts; the rest passes for drift. Batches that are too large cost waiting and
padding, those that are a little too small cost next to nothing."""
_ABOUT: Final = 1.05
"""Times that differ by less are about the same."""
_NOTICED: Final = 0.03
"""How much of the mean batch what each batch costs besides must change by before columns are computed anew."""
_LEAST: Final = 1e-7
"""The shortest time that a run is taken to take, in seconds."""
_FURTHEST: Final = 3.5
"""Most that serving moves what was measured, as a log ratio: 33 times."""
_COLUMNS: Final = 1024
"""How many widths are kept computed."""
_TURNS: Final = 5
"""How many times each shape is measured."""
_ON_A_LINE: Final = 0.1
"""How far times may be from the line through them."""
_ENOUGH_FOR_A_LINE: Final = 4
"""Of how many widths times are held against a line."""


class Column(NamedTuple):
    """The costs of one width, before the drift: `CostTable.slower` times as long is what a batch takes.

    Attributes:
        seconds: Of 0, 1, 2, ... rows; entry 0 is 0.
        cheapest: For at most 0, 1, 2, ... rows, the number of rows at which one row is cheapest; entry 0 is 0.
        enough: The least number of rows at which one row is about as cheap as at any other.
        least: The seconds of one row where it is cheapest.
    """

    seconds: list[float]
    cheapest: list[int]
    enough: int
    least: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Column:
        """The column of these seconds, of 1, 2, ... rows; they do not fall."""
        counts = np.arange(1, len(seconds) + 1)
        each = seconds / counts
        least = np.minimum.accumulate(each)
        cheapest = np.maximum.accumulate(np.where(each <= least, counts, 0))
        enough = int((each <= _ABOUT * least[-1]).argmax()) + 1
        return cls([0.0, *seconds.tolist()], [0, *cheapest.tolist()], enough, float(least[-1]))


class _Kept(NamedTuple):
    """What is computed of a table before the drift, until what batches cost besides changes.

    Attributes:
        rows: How many rows the columns go to.
        besides: The seconds besides that are in it.
        seconds: `[rows, widths]` of the grid.
        columns: By width.
    """

    rows: int
    besides: float
    seconds: NDArray[np.float64]
    columns: dict[int, Column]


class CostTable:
    """Seconds of a batch by rows and width.

    Args:
        rows: The grid's rows, ascending, at least one.
        widths: The grid's widths, ascending, at least one.
        seconds: `[rows, widths]`, finite and above 0; made monotone here.
        clock: What the seconds are of, and what serving must observe with: by default the processor time of the thread
            that runs, which nothing else on the machine can spoil. A run that is not this thread's work (a device's)
            wants the time on the wall.

    Attributes:
        slower: How many times as long everything takes as it did at load: the drift.

    Raises:
        ValueError: That is no such grid.
    """

    def __init__(
        self,
        rows: Sequence[int],
        widths: Sequence[int],
        seconds: NDArray[np.float64],
        *,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.clock = clock
        self.rows = np.asarray(rows, dtype=np.int64)
        self.widths = np.asarray(widths, dtype=np.int64)
        measured = np.asarray(seconds, dtype=np.float64)
        for points in (self.rows, self.widths):
            if points.ndim != 1 or not len(points) or points[0] < 1 or (np.diff(points) < 1).any():
                raise ValueError("a cost table wants ascending rows and widths, at least 1")
        if measured.shape != (len(self.rows), len(self.widths)) or not ((measured > 0) & (measured < np.inf)).all():
            raise ValueError("a cost table wants one time above 0 for each of its rows and widths")
        self._measured = np.maximum.accumulate(np.maximum.accumulate(measured, axis=0), axis=1)
        self.slower = 1.0
        self._drift = 0.0  # log of what serving sees over what was measured
        self._besides = _Besides()
        self._learning = threading.RLock()  # learning predicts, and who predicts may want more rows
        self._kept = _Kept(0, 0.0, self._measured, {})  # another thread's `observe` puts another in its place
        self._between: dict[int, NDArray[np.float64]] = {}  # by rows: the weights of the grid's rows in 1, 2, ... rows
        self._widths = self.widths.tolist()

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`[rows, widths]` of the grid, as serving has it now; monotone."""
        return self._kept.seconds * self.slower

    def column(self, width: int, rows: int) -> Column:
        """The costs of up to `rows` rows of that width, before the drift; kept until more than that changes."""
        kept = self._kept
        column = kept.columns.get(width)
        return self.columns([width], rows)[0] if column is None or rows > kept.rows else column

    def columns(self, widths: Sequence[int], rows: int) -> list[Column]:
        """The costs of up to `rows` rows of each of some widths, before the drift."""
        kept = self._kept
        if rows > kept.rows:
            with self._learning:
                kept = self._kept = self._kept._replace(rows=max(rows, self._kept.rows), columns={})
        columns = kept.columns
        try:
            return [columns[width] for width in widths]
        except KeyError:
            return [self._column_of(kept, width) for width in widths]

    def _column_of(self, kept: _Kept, width: int) -> Column:
        column = kept.columns.get(width)
        return _keep(kept.columns, width, self._computed(width, kept.rows, kept.seconds)) if column is None else column

    def _computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> Column:
        """The costs of up to `rows` rows of that width, where those of the grid are `seconds [rows, widths]`."""
        between = self._between.get(rows)
        if between is None:
            counts, grid = np.arange(1, rows + 1), np.eye(len(self.rows))
            weights = np.stack([np.interp(counts, self.rows, point) for point in grid], axis=1)
            between = self._between[rows] = weights * np.maximum(1.0, counts / self.rows[-1])[:, None]
        # Past the widest, a slope of many rows may be less than one of few.
        at_width = np.maximum.accumulate(_along(self._widths, seconds, width))
        return Column.of(np.maximum.accumulate(between @ at_width))

    def predict(self, rows: int, width: int) -> float:
        """Seconds of one batch; past the grid's ends it grows with the last slope of the width, and as the rows do."""
        return self.column(width, rows).seconds[rows] * self.slower

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Learns from a batch that ran: slowly, and never by more than a hiccup's share at once.

        What makes one batch slower, a busy neighbour or a lower clock, makes all slower, so there is one drift for all.
        One for each number of rows was tried: rows that do not occur then look cheap or dear beside those that do, and
        few rows, which occur at other lengths than many, drift away from these; batches grew, and throughput fell.

        What is done for each batch, from its plan to its scores, was not measured at load, or with all of it in the
        processor's caches. At work each run drives it out of these: without that in the table batches are too small.

        What is no duration (zero, negative, not finite) is not learned from.
        """
        if not 0 < seconds < math.inf:
            return
        with self._learning:
            besides = self._besides
            measured = self.column(width, rows).seconds[rows] - self._kept.besides
            expected = (measured + besides.seconds) * self.slower
            error = _within(math.log(seconds) - math.log(expected), _HICCUP)
            self._drift = _within(self._drift + _MEMORY * error, _FURTHEST)
            self.slower = math.exp(self._drift)
            if measured > _LEAST:
                besides.observe(measured, expected * math.exp(error) / self.slower)
            if abs(besides.seconds - self._kept.besides) > _NOTICED * besides.mean_batch:
                self._kept = _Kept(self._kept.rows, besides.seconds, self._measured + besides.seconds, {})

    def to_json(self) -> dict[str, Any]:
        """Grid and seconds, for reports and for the model directory."""
        return {"rows": self.rows.tolist(), "widths": self.widths.tolist(), "seconds": self.seconds.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, clock: Callable[[], float] = time.thread_time) -> CostTable:
        """The table that `to_json` wrote."""
        return cls(data["rows"], data["widths"], np.asarray(data["seconds"], dtype=np.float64), clock=clock)


class _Besides:
    """What each batch costs besides what was measured of its shape: what a batch of no size costs.

    Where a line through all batches meets it, by least squares with a weight of `1 / measured` for each: short batches
    vary less than long ones, but most in proportion, and neither may decide alone.

    Attributes:
        seconds: The part of it that is believed; 0 or above.
        mean_batch: What a batch takes in the mean, in seconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.mean_batch = 0.0
        self._count = 0
        self._means = [0.0, 0.0, 0.0, 0.0]

    def observe(self, measured: float, took: float) -> None:
        """One batch more.

        Args:
            measured: The seconds of its shape at load; above 0.
            took: Those that it took, less the drift; above 0.
        """
        self._count += 1
        weight = max(_LONG_MEMORY, 1 / self._count)
        seen = (measured, 1 / measured, took, took / measured)
        self._means = [mean + weight * (each - mean) for mean, each in zip(self._means, seen, strict=True)]
        size, inverse, self.mean_batch, slower = self._means
        variety = max(0.0, size * inverse - 1)
        besides = (size * slower - self.mean_batch) / (variety + _DOUBT + _FEW / self._count)
        self.seconds = max(0.0, min(_BELIEVED * besides, _MOST_BESIDES * self.mean_batch))


def grid(largest: int, *, smallest: int = 1) -> list[int]:
    """Powers of two from `smallest`, and `largest` itself."""
    points = []
    point = smallest
    while point < largest:
        points.append(point)
        point *= 2
    return [*points, largest]


def rows_grid(largest: int) -> list[int]:
    """Powers of two and half as many again, 1, 2, 3, 4, 6, 8, 12, ..., and `largest` itself.

    Kernels of matrix products take 6 or 12 rows at once, on many a processor: there one row is cheapest.
    """
    points = grid(largest)
    return sorted({*points, *(3 * point // 2 for point in points[1:] if 3 * point // 2 <= largest)})


def measure(
    run: Run,
    *,
    max_rows: int,
    max_width: int,
    max_cost_steps: int,
    multiple: int = 4,
    budget_seconds: float = 1.0,
    clock: Callable[[], float] = time.thread_time,
) -> CostTable:
    """Measures a table, small shapes first, the fastest of some runs each, until the budget is spent.

    The runs of a shape are not one after the other: all shapes take turns, so that what slows the machine for a while
    slows them alike. A table whose small shapes met a busy machine and whose large ones did not would make every batch
    too large, for as long as it serves. Where the times of as many rows lie on a line over the widths, as a recurrent
    model's do, the line is taken: what noise is left in one shape is then shared by all.

    A shape that took longer than a larger one was held up by something else, and is taken to cost what that one does.
    A shape that was not reached (too large a batch, or no time left) is extrapolated: linear in the width, but never
    past proportion to fewer rows, so that a hiccup in the last shape measured is not drawn out into a slope.

    Args:
        run: Runs one batch of that many rows and steps.
        max_rows: Most rows of a batch.
        max_width: Widest batch, in steps.
        max_cost_steps: Most rows x width that are run.
        multiple: Widths are multiples of it.
        budget_seconds: Time to spend.
        clock: What is measured, and what the budget is of; see `CostTable`.
    """
    rows = rows_grid(max_rows)
    widths = grid(max(max_width, multiple), smallest=multiple)
    seconds = np.full((len(rows), len(widths)), np.nan)
    shapes = sorted((r * w, i, j) for i, r in enumerate(rows) for j, w in enumerate(widths) if r * w <= max_cost_steps)
    shapes = shapes or [(rows[0] * widths[0], 0, 0)]
    run(rows[0], widths[0])  # the first run allocates
    now = clock()
    end = now + budget_seconds
    while shapes and now <= end:
        until = now + (end - now) / _TURNS
        in_turns = 0  # of the shapes left, as many as a turn has time for; for the rest there may be time afterwards
        for turn in range(_TURNS):
            for _, i, j in shapes[: in_turns or None]:
                before = clock()
                run(rows[i], widths[j])
                now = clock()
                seconds[i, j] = np.fmin(seconds[i, j], max(now - before, _LEAST))
                if turn == 0:
                    in_turns += 1
                if now > until:
                    break
            until = end
            if now > end:
                break
        shapes = shapes[in_turns:]
    measured = _straightened(np.asarray(widths), _without_hiccups(seconds))
    return CostTable(rows, widths, _filled(np.asarray(rows), np.asarray(widths), measured), clock=clock)


def _without_hiccups(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each measured time lowered to the least of the shapes with as many rows and steps or more; NaN stays."""
    from_largest = seconds[::-1, ::-1]
    least = np.fmin.accumulate(np.fmin.accumulate(from_largest, axis=0), axis=1)[::-1, ::-1]
    return np.where(np.isfinite(seconds), least, np.nan)


def _straightened(widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The times of each number of rows on the line that fits them best, where one does; NaN stays."""
    straight = seconds.copy()
    for row in straight:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) < _ENOUGH_FOR_A_LINE:
            continue
        steps, took = widths[known], row[known]
        fixed, each = np.linalg.lstsq(np.stack([1 / took, steps / took], axis=1), np.ones(len(known)))[0]
        if fixed < 0:
            fixed, each = 0.0, (steps / took).sum() / np.square(steps / took).sum()
        line = fixed + each * steps
        if each > 0 and (np.abs(line / took - 1) <= _ON_A_LINE).all():
            row[known] = line
    return straight


def _filled(rows: NDArray[np.int64], widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The grid without gaps; `[0, 0]` is always measured.

    The fewest rows go on in the width as they did; more go on likewise, but take no less beside fewer than they did
    where they were widest, and no more than in proportion: noise in narrow shapes, drawn out into a slope, would make
    many rows look cheap, or any look dear.
    """
    filled = seconds.copy()
    for i in range(len(rows)):
        known = np.flatnonzero(np.isfinite(seconds[i]))
        for j in np.flatnonzero(np.isnan(seconds[i])):
            on_slope = _along(widths[known].tolist(), seconds[i, known], int(widths[j])) if len(known) else np.inf
            if i:
                fewer = filled[i - 1]
                at_least = fewer[j] * seconds[i, known[-1]] / fewer[known[-1]] if len(known) else 0.0
                on_slope = min(max(on_slope, at_least), fewer[j] * rows[i] / rows[i - 1])
            filled[i, j] = on_slope
    return filled


def _keep(columns: dict[int, Column], width: int, column: Column) -> Column:
    """Keeps a column, in the place of all others where there are too many."""
    if len(columns) >= _COLUMNS:
        columns.clear()
    columns[width] = column
    return column


def _along(points: Sequence[int], values: NDArray[np.float64], x: int) -> Any:
    """`values [..., points]` at `x`, `[...]`: linear between the points.

    Below the first point it is the first value; past the last one the last slope goes on, or proportion where there is
    but one point.
    """
    if len(points) == 1:
        return values[..., 0] * max(1.0, x / points[0])
    right = max(1, min(bisect_left(points, x), len(points) - 1))
    share = max(0.0, (x - points[right - 1]) / (points[right] - points[right - 1]))
    return values[..., right - 1] + share * (values[..., right] - values[..., right - 1])


def _within(value: float, bound: float) -> float:
    return max(-bound, min(value, bound))
