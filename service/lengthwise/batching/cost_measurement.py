"""Measures a cost table: runs batches of a grid of shapes, and smooths and completes their times."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.cost import SHORTEST_SECONDS, CostTable, interpolated

_ROUNDS: Final = 5  # each shape is measured so often at load; the fastest run counts
_LINE_TOLERANCE: Final = 0.1  # a line over the widths replaces measured times that are all within this share of it
_LINE_POINTS: Final = 4  # least measured widths for a line


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
    clock: Callable[[], float] = time.thread_time,
    valid_steps_only: bool = False,
) -> CostTable:
    """Measures a table by `run(rows, width)`: small shapes first, the fastest of several runs of each, in the budget.

    1. All shapes are run in turns, so that a busy period slows all of them. If it slowed only the small ones, the
       planner would make every batch too large.
    2. A shape that took longer than a larger one was disturbed: it gets the larger one's time.
    3. Times of one number of rows that lie on a line over the widths, as a recurrent model's do, are replaced by the
       line.
    4. A shape that was not run is extrapolated: linearly in the width, and at most in proportion to the rows, so that
       noise in the last shape measured does not become a slope.

    `budget_seconds` are on `clock`; `valid_steps_only`: see `CostTable`.
    """
    rows = rows_grid(max_rows)
    narrowest = min_width or multiple
    widths = grid(max(max_width, narrowest), smallest=narrowest)
    seconds = np.full((len(rows), len(widths)), np.nan)
    shapes = sorted(
        (r * w, i, j) for i, r in enumerate(rows) for j, w in enumerate(widths) if r * w <= max_padded_steps
    )
    shapes = shapes or [(rows[0] * widths[0], 0, 0)]
    run(rows[0], widths[0])  # the first run allocates
    now = clock()
    end = now + budget_seconds
    while shapes and now <= end:
        until = now + (end - now) / _ROUNDS
        in_rounds = 0  # how many of the shapes left fit into one round; the rest is run afterwards if time is left
        for turn in range(_ROUNDS):
            for _, i, j in shapes[: in_rounds or None]:
                before = clock()
                run(rows[i], widths[j])
                now = clock()
                seconds[i, j] = np.fmin(seconds[i, j], max(now - before, SHORTEST_SECONDS))
                if turn == 0:
                    in_rounds += 1
                if now > until:
                    break
            until = end
            if now > end:
                break
        shapes = shapes[in_rounds:]
    of_larger = np.fmin.accumulate(np.fmin.accumulate(seconds[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
    measured = _fitted_to_lines(np.asarray(widths), np.where(np.isfinite(seconds), of_larger, np.nan))
    seconds = _filled(np.asarray(rows), np.asarray(widths), measured)
    return CostTable(rows, widths, seconds, valid_steps_only=valid_steps_only, clock=clock)


def _fitted_to_lines(widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[rows, widths]`: the times of each number of rows, replaced by a line where one fits; NaN stays NaN."""
    straight = seconds.copy()
    for row in straight:
        known = np.flatnonzero(np.isfinite(row))
        if len(known) < _LINE_POINTS:
            continue
        steps, took = widths[known], row[known]
        fixed, slope = np.linalg.lstsq(np.stack([1 / took, steps / took], axis=1), np.ones(len(known)))[0]
        if fixed < 0:
            fixed, slope = 0.0, (steps / took).sum() / np.square(steps / took).sum()
        line = fixed + slope * steps
        if slope > 0 and (np.abs(line / took - 1) <= _LINE_TOLERANCE).all():
            row[known] = line
    return straight


def _filled(rows: NDArray[np.int64], widths: NDArray[np.int64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[rows, widths]`: the grid with its gaps (NaN) extrapolated; `[0, 0]` is always measured.

    Each number of rows continues its last slope over the width. Noise must not make many rows look too cheap or too
    expensive: relative to the next smaller number of rows, the time is at least what it was at the widest measured
    shape, and at most in proportion to the rows.
    """
    filled = seconds.copy()
    for i in range(len(rows)):
        known = np.flatnonzero(np.isfinite(seconds[i]))
        for j in np.flatnonzero(np.isnan(seconds[i])):
            on_slope = interpolated(widths[known].tolist(), seconds[i, known], int(widths[j])) if len(known) else np.inf
            if i:
                fewer = filled[i - 1]
                at_least = fewer[j] * seconds[i, known[-1]] / fewer[known[-1]] if len(known) else 0.0
                on_slope = min(max(on_slope, at_least), fewer[j] * rows[i] / rows[i - 1])
            filled[i, j] = on_slope
    return filled
