"""What a batch costs: seconds by rows and width, measured on the machine that serves.

The planner asks this table what company is worth. It is measured at load on a grid of shapes, made monotone (more rows
or more steps never cost less), and interpolated linearly between the grid's points, which fits recurrent models: their
time is linear in the width, and piecewise linear in the rows up to where the processor's vectors are full. Serving
refines it from real runs; a single hiccup moves it by a few percent at most.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Run = Callable[[int, int], object]
"""Runs one batch of `rows` by `width`, and returns when it is done."""

_HICCUP = 0.7
"""Most that one run counts for, as a log ratio: twice or half of what was expected."""
_MEMORY = 0.05
"""Share of a new run in what is remembered."""
_NOTICED = 0.02
"""Drift, as a log ratio, below which predictions are not computed anew."""


class Column(NamedTuple):
    """The costs of one width.

    Attributes:
        seconds: Of 0, 1, 2, ... rows; entry 0 is 0.
        cheapest: For at most 0, 1, 2, ... rows, the number of rows at which one row is cheapest; entry 0 is 0.
    """

    seconds: list[float]
    cheapest: list[int]


class CostTable:
    """Seconds of a batch by rows and width.

    Args:
        rows: The grid's rows, ascending, at least one.
        widths: The grid's widths, ascending, at least one.
        seconds: `[rows, widths]`, above 0; made monotone here.
    """

    def __init__(self, rows: Sequence[int], widths: Sequence[int], seconds: NDArray[np.float64]) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.widths = np.asarray(widths, dtype=np.int64)
        measured = np.asarray(seconds, dtype=np.float64)
        if measured.shape != (len(self.rows), len(self.widths)) or not (measured > 0).all():
            raise ValueError("a cost table wants one time above 0 for each of its rows and widths")
        self._measured = np.maximum.accumulate(np.maximum.accumulate(measured, axis=0), axis=1)
        self._rows = self.rows.tolist()
        self._drift = np.zeros(len(self.rows))  # log of what serving sees over what was measured, by rows
        self._applied = self._drift.copy()  # the part of it that predictions have
        self._columns: dict[int, Column] = {}

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`[rows, widths]` of the grid, as serving has it now; monotone."""
        drifted = self._measured * np.exp(self._applied)[:, None]
        result: NDArray[np.float64] = np.maximum.accumulate(drifted, axis=0)
        return result

    def column(self, width: int, rows: int) -> Column:
        """The costs of up to `rows` rows of that width; kept until the table changes."""
        column = self._columns.get(width)
        if column is None or len(column.seconds) <= rows:
            rows = max(rows, self._rows[-1])
            at_width = np.asarray([_along(self.widths, line, width) for line in self.seconds])
            seconds = np.interp(np.arange(rows + 1), self.rows, at_width)
            seconds[: self.rows[0]] = at_width[0]
            for count in range(int(self.rows[-1]) + 1, rows + 1):
                seconds[count] = _along(self.rows, at_width, count)
            column = self._columns[width] = Column(
                [0.0, *seconds[1:].tolist()], _cheapest([0.0, *seconds[1:].tolist()])
            )
        return column

    def predict(self, rows: int, width: int) -> float:
        """Seconds of one batch; grows linearly past the grid's ends."""
        return self.column(width, rows).seconds[rows]

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """Learns from a batch that ran: slowly, and never by more than a hiccup's share at once."""
        if seconds <= 0:
            return
        error = math.log(seconds / self.predict(rows, width))
        place = min(bisect_left(self._rows, rows), len(self._rows) - 1)
        self._drift[place] += _MEMORY * max(-_HICCUP, min(error, _HICCUP))
        if abs(self._drift - self._applied).max() > _NOTICED:
            self._applied = self._drift.copy()
            self._columns = {}

    def to_json(self) -> dict[str, Any]:
        """Grid and seconds, for reports and for the model directory."""
        return {"rows": self.rows.tolist(), "widths": self.widths.tolist(), "seconds": self.seconds.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostTable:
        """The table that `to_json` wrote."""
        return cls(data["rows"], data["widths"], np.asarray(data["seconds"], dtype=np.float64))


def grid(largest: int, *, smallest: int = 1) -> list[int]:
    """Powers of two from `smallest`, and `largest` itself."""
    points = []
    point = smallest
    while point < largest:
        points.append(point)
        point *= 2
    return [*points, largest]


def measure(
    run: Run,
    *,
    max_rows: int,
    max_width: int,
    max_cost_steps: int,
    multiple: int = 4,
    budget_seconds: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """Measures a table, small shapes first, the fastest of a few runs each, until the budget is spent.

    A shape that was not reached (too large a batch, or no time left) is extrapolated: linear in the width, and from
    fewer rows in proportion.

    Args:
        run: Runs one batch of that many rows and steps.
        max_rows: Most rows of a batch.
        max_width: Widest batch, in steps.
        max_cost_steps: Most rows x width that are run.
        multiple: Widths are multiples of it.
        budget_seconds: Time to spend.
        clock: Seconds, for tests.
    """
    rows = grid(max_rows)
    widths = grid(max(max_width, multiple), smallest=multiple)
    seconds = np.full((len(rows), len(widths)), np.nan)
    shapes = sorted((r * w, i, j) for i, r in enumerate(rows) for j, w in enumerate(widths) if r * w <= max_cost_steps)
    shapes = shapes or [(rows[0] * widths[0], 0, 0)]
    start = clock()
    run(rows[0], widths[0])  # the first run allocates
    for _, i, j in shapes:
        best = np.inf
        for _ in range(3):
            before = clock()
            run(rows[i], widths[j])
            best = min(best, clock() - before)
            if clock() - start > budget_seconds:
                break
        seconds[i, j] = max(best, 1e-7)
        if clock() - start > budget_seconds:
            break
    return CostTable(rows, widths, _filled(np.asarray(rows), np.asarray(widths), seconds))


def _filled(rows: NDArray[np.int64], widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The grid without gaps; `[0, 0]` is always measured."""
    filled = seconds.copy()
    for i in range(len(rows)):
        known = np.flatnonzero(np.isfinite(filled[i]))
        if not len(known):
            filled[i] = filled[i - 1] * rows[i] / rows[i - 1]
            continue
        for j in range(len(widths)):
            if not np.isfinite(filled[i, j]):
                filled[i, j] = _along(widths[known], filled[i, known], int(widths[j]))
    return filled


def _cheapest(seconds: list[float]) -> list[int]:
    cheapest = [0, 1][: len(seconds)]
    for rows in range(2, len(seconds)):
        best = cheapest[-1]
        cheapest.append(rows if seconds[rows] * best <= seconds[best] * rows else best)
    return cheapest


def _along(points: NDArray[np.int64], values: NDArray[np.float64], x: int) -> float:
    """Linear interpolation, and past the ends the last slope, or in proportion where there is but one point."""
    if len(points) == 1:
        return float(values[0]) * max(1.0, x / float(points[0]))
    if x > points[-1]:
        (x0, x1), (y0, y1) = points[-2:], values[-2:]
        return float(y1 + max(0.0, (y1 - y0) / (x1 - x0)) * (x - x1))
    return float(np.interp(x, points, values))


def is_monotone(table: CostTable) -> bool:
    """Whether more rows or more steps never cost less, on the grid."""
    grid_seconds = table.seconds
    by_rows = all((after >= before).all() for before, after in pairwise(grid_seconds))
    return by_rows and bool((np.diff(grid_seconds, axis=1) >= 0).all())
