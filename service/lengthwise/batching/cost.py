"""Predicted seconds of a batch, by its rows and its width, on the machine that serves.

The table is measured when a model is loaded, on a grid of shapes (`batching.cost_measurement`). It is made monotone
(more rows or more steps never cost less) and is interpolated linearly between the points of the grid. That fits
recurrent models: their time is linear in the width, and piecewise linear in the rows until the processor's vectors are
full.

The grid is of batches of one length. With kernels that compute valid steps only, a batch of several lengths costs less
than its width says: about as much as fewer rows of that width, see `rows_that_count`.

While serving, the table learns three numbers from the batches that run:

| number | meaning |
|---|---|
| drift | how many times as long every batch takes as it did at load: one factor for all shapes |
| overhead | the seconds that each batch takes on top of what its shape took at load, whatever its shape |
| padding | what a padded step costs, as a share of a valid one: 1 where the whole rectangle is computed |

A single slow run moves each of them by a few percent at most.
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

_MAX_LOG_ERROR: Final = 0.7
"""Bound on the log of one run's seconds over the predicted seconds (0.7 is a factor of 2), so that a run that other
work on the machine delayed has little effect."""
_DRIFT_WEIGHT: Final = 0.05
"""Weight of one run in the moving average of the drift: it follows a change within about 20 batches."""
_OVERHEAD_WEIGHT: Final = 0.01
"""Weight of one run in the moving averages of the overhead. Less than the drift's, because the overhead is estimated
from the differences between batches, which are small."""
_SIZE_VARIANCE_FLOOR: Final = 0.03
"""Regularisation: the overhead estimate shrinks to 0 when the squared coefficient of variation of the batches' seconds
is not well above this. Batches of nearly one size do not show what a batch of no size would take."""
_FEW_BATCHES: Final = 10
"""Regularisation: after N batches, `_FEW_BATCHES / N` is added to the floor above, so that a few batches move the
overhead little."""
_MAX_OVERHEAD: Final = 0.25
"""Largest overhead, as a share of the mean batch's seconds."""
_OVERHEAD_SHRINKAGE: Final = 0.5
"""Share of the estimated overhead that is used; the drift takes the rest. Batches that are too large cost waiting and
padding, while batches that are a little too small cost almost nothing."""
_NEARLY_BEST: Final = 1.05
"""A row's seconds within this factor of the least possible count as the least."""
_OVERHEAD_STEP: Final = 0.03
"""Columns are computed again when the overhead has changed by more than this share of the mean batch's seconds."""
SHORTEST_SECONDS: Final = 1e-7
"""Lower bound of a measured run, in seconds: a coarse clock may read 0."""
_PADDING_WEIGHT: Final = 0.02
"""Weight of one run in the moving averages by which the cost of padding is learned."""
_PADDING_STEP: Final = 0.003
"""Share of one run's estimate by which the cost of padding is moved."""
_PADDING_VARIANCE_FLOOR: Final = 0.1
"""Regularisation: batches of nearly the same share of padding do not show what padding costs."""
_MOST_PADDING: Final = 0.99
"""Bound on what is learned."""
_MAX_LOG_DRIFT: Final = 3.5
"""Bound on the log of the drift: serving scales the measured times by 33 at most."""
_MAX_COLUMNS: Final = 1024
"""How many widths have their column cached; past it the cache is emptied."""


class Column(NamedTuple):
    """Predicted seconds of batches of one width, before the drift: multiply by `CostTable.drift`.

    Attributes:
        seconds: Seconds of a batch of 0, 1, 2, ... rows; the first is 0.
        cheapest_rows: For at most 0, 1, 2, ... rows, the number of rows with the fewest seconds a row; the first is 0.
        enough_rows: The smallest number of rows whose seconds a row are nearly the least (within 5 %).
        least_row_seconds: The seconds a row at the best number of rows.
    """

    seconds: list[float]
    cheapest_rows: list[int]
    enough_rows: int
    least_row_seconds: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Column:
        """The column for the seconds of batches of 1, 2, ... rows, `[rows]`, which do not fall."""
        counts = np.arange(1, len(seconds) + 1)
        of_one_row = seconds / counts
        least = np.minimum.accumulate(of_one_row)
        cheapest = np.maximum.accumulate(np.where(of_one_row <= least, counts, 0))
        enough = int((of_one_row <= _NEARLY_BEST * least[-1]).argmax()) + 1
        return cls([0.0, *seconds.tolist()], [0, *cheapest.tolist()], enough, float(least[-1]))


class _Snapshot(NamedTuple):
    """What is computed from a table and its overhead, before the drift. Replaced when the overhead changes.

    Attributes:
        rows: Most rows in a column.
        overhead: The overhead that is included, in seconds.
        seconds: `[rows, widths]` of the grid, with the overhead.
        columns: The cached columns, by width.
    """

    rows: int
    overhead: float
    seconds: NDArray[np.float64]
    columns: dict[int, Column]


class CostTable:
    """Seconds of a batch by rows and width.

    Args:
        rows: The grid's rows, ascending, at least one.
        widths: The grid's widths, ascending, at least one.
        seconds: `[rows, widths]`, finite and above 0; made monotone here.
        padding: What a padded step costs, as a share of a valid one, 0 to 1.
        clock: The clock of the seconds, for the table and for `observe`. By default the processor time of the running
            thread, which other work on the machine does not change. A run on a device needs the wall clock.

    Attributes:
        drift: How many times as long a batch takes as it did at load.
        overhead: The seconds of every batch that its shape does not explain.
        padding: What a padded step costs, as a share of a valid one.

    Raises:
        ValueError: The rows, the widths or the seconds do not form such a grid.
    """

    def __init__(
        self,
        rows: Sequence[int],
        widths: Sequence[int],
        seconds: NDArray[np.float64],
        *,
        padding: float = 1.0,
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
        if not 0 <= padding <= 1:
            raise ValueError("a padded step costs 0 to 1 times what a valid one costs")
        self._padding = PaddingCost(padding)
        self._measured = np.maximum.accumulate(np.maximum.accumulate(measured, axis=0), axis=1)
        self.drift = 1.0
        self.overhead = Overhead()
        self._log_drift = 0.0
        self.learning = threading.RLock()  # reentrant: `observe` predicts, and a prediction may add rows
        self._snapshot = _Snapshot(0, 0.0, self._measured, {})  # replaced, never changed, by `observe` in any thread
        self._row_weights: dict[int, NDArray[np.float64]] = {}  # `[rows, grid rows]` by rows, for interpolation
        self._widths = self.widths.tolist()

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`[rows, widths]` of the grid, with overhead and drift; monotone."""
        return self._snapshot.seconds * self.drift

    @property
    def padding(self) -> float:
        """What a padded step costs, as a share of a valid one."""
        return self._padding.share

    @property
    def cached_widths(self) -> int:
        """How many widths have their column cached."""
        return len(self._snapshot.columns)

    def column(self, width: int, rows: int) -> Column:
        """The column of a width, for `rows` rows at least, before the drift; cached until the overhead changes."""
        snapshot = self._snapshot
        column = snapshot.columns.get(width)
        return self.columns([width], rows)[0] if column is None or rows > snapshot.rows else column

    def columns(self, widths: Sequence[int], rows: int) -> list[Column]:
        """The columns of some widths, each for `rows` rows at least, before the drift."""
        snapshot = self._snapshot
        if rows > snapshot.rows:
            with self.learning:
                old = self._snapshot
                snapshot = self._snapshot = old._replace(rows=max(rows, old.rows), columns={})
        columns = snapshot.columns
        try:
            return [columns[width] for width in widths]
        except KeyError:
            return [self._column_of(snapshot, width) for width in widths]

    def _column_of(self, snapshot: _Snapshot, width: int) -> Column:
        columns = snapshot.columns
        column = columns.get(width)
        if column is None:
            column = self.computed(width, snapshot.rows, snapshot.seconds)
            if len(columns) >= _MAX_COLUMNS:
                columns.clear()
            columns[width] = column
        return column

    def computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> Column:
        """The column of a width for 1 to `rows` rows, interpolated in the grid's `seconds [rows, widths]`."""
        weights = self._row_weights.get(rows)
        if weights is None:
            counts, grid = np.arange(1, rows + 1), np.eye(len(self.rows))
            between = np.stack([np.interp(counts, self.rows, point) for point in grid], axis=1)
            weights = self._row_weights[rows] = between * np.maximum(1.0, counts / self.rows[-1])[:, None]
        # Past the widest point, the slope of many rows may be smaller than the slope of few: accumulate again.
        at_width = np.maximum.accumulate(interpolated(self._widths, seconds, width))
        return Column.of(np.maximum.accumulate(weights @ at_width))

    def predict(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of one batch, with overhead and drift.

        Past the end of the grid they grow with the last slope over the width, and in proportion to the rows.

        Args:
            rows: The rows.
            width: Their padded number of steps.
            valid_steps: How many steps of all rows are valid; None if all are.
        """
        return self._seconds(rows, width, valid_steps) * self.drift

    def _seconds(self, rows: int, width: int, valid_steps: int | None) -> float:
        times = self.column(width, rows).seconds
        if valid_steps is None:
            return times[rows]
        return seconds_of(times, rows_that_count(rows, width, valid_steps, self.padding))

    def observe(self, rows: int, width: int, seconds: float, valid_steps: int | None = None) -> None:
        """Learns from a batch that ran: updates the drift and the overhead, both by a small bounded step.

        There is one drift for all shapes, because a busy machine or a lower clock slows all of them. One drift for each
        number of rows was tried and was worse: numbers of rows that did not occur looked cheap or expensive beside
        those that did, batches grew, and throughput fell.

        The overhead is the work for each batch from its plan to its scores. It was not measured at load, or only with
        warm processor caches, which the runs between two batches evict. Without it in the table, batches are too small.

        Args:
            rows: Rows that ran.
            width: Their padded number of steps.
            seconds: How long the batch took on `clock`. Ignored if it is zero, negative or not finite.
            valid_steps: How many steps of all rows were valid; None if all were.
        """
        if not 0 < seconds < math.inf:
            return
        with self.learning:
            overhead, snapshot = self.overhead, self._snapshot
            predicted = self._seconds(rows, width, valid_steps)
            measured = predicted - snapshot.overhead
            expected = (measured + overhead.seconds) * self.drift
            error = _clipped(math.log(seconds) - math.log(expected), _MAX_LOG_ERROR)
            self._log_drift = _clipped(self._log_drift + _DRIFT_WEIGHT * error, _MAX_LOG_DRIFT)
            self.drift = math.exp(self._log_drift)
            if valid_steps is not None and self.padding < 1:
                of_padding = self._seconds(rows, width, None) - self._seconds(rows, width, valid_steps)
                self._padding.observe(of_padding / predicted, error)
            if measured > SHORTEST_SECONDS:
                overhead.observe(measured, expected * math.exp(error) / self.drift)
            snapshot = self._snapshot  # `column` may have replaced it
            if abs(overhead.seconds - snapshot.overhead) > _OVERHEAD_STEP * overhead.mean_batch_seconds:
                self._snapshot = _Snapshot(snapshot.rows, overhead.seconds, self._measured + overhead.seconds, {})

    def to_json(self) -> dict[str, Any]:
        """Grid and seconds, for reports and for the model directory."""
        return {
            "rows": self.rows.tolist(),
            "widths": self.widths.tolist(),
            "seconds": self.seconds.tolist(),
            "padding": self.padding,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], *, clock: Callable[[], float] = time.thread_time) -> CostTable:
        """The table that `to_json` wrote."""
        seconds = np.asarray(data["seconds"], dtype=np.float64)
        return cls(data["rows"], data["widths"], seconds, padding=float(data.get("padding", 1.0)), clock=clock)


class PaddingCost:
    """Learns what a padded step costs, as a share of a valid one.

    If batches with more padding than usual take longer than predicted, and those with less do not, the share is too
    small. So it follows the covariance of the two, by a small bounded step for each batch. A share of 1 stays 1: the
    whole rectangle is computed.

    Args:
        share: As it was measured at load.

    Attributes:
        share: What a padded step costs, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._count = 0
        self._of_padding = self._error = self._variance = 0.0

    def observe(self, of_padding: float, error: float) -> None:
        """Learns from one batch.

        Args:
            of_padding: How much longer it would be predicted to take if all of its steps were valid, as a share.
            error: The log of the seconds it took over those that were predicted, bounded.
        """
        self._count += 1
        weight = max(_PADDING_WEIGHT, 1 / self._count)
        apart = of_padding - self._of_padding
        self._of_padding += weight * apart
        self._error += weight * (error - self._error)
        self._variance += weight * (apart * apart - self._variance)
        step = apart * (error - self._error) / (self._variance + _PADDING_VARIANCE_FLOOR)
        self.share = min(_MOST_PADDING, max(0.0, self.share + _PADDING_STEP * _clipped(step, 1.0)))


class Overhead:
    """Estimates the fixed overhead of a batch: the intercept of a weighted least-squares fit.

    The fit is `took = overhead + slope * measured` over the batches that ran, each with a weight of `1 / measured`:
    the times of short batches vary less than those of long ones, but most of them in proportion to their length.

    Attributes:
        seconds: The overhead that is used, after regularisation; at least 0.
        mean_batch_seconds: Moving average of a batch's seconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.mean_batch_seconds = 0.0
        self._count = 0
        self._means = [0.0, 0.0, 0.0, 0.0]  # of measured, 1 / measured, took, took / measured

    def observe(self, measured: float, took: float) -> None:
        """Adds one batch to the fit.

        Args:
            measured: The seconds of its shape at load; above 0.
            took: The seconds that it took, divided by the drift; above 0.
        """
        self._count += 1
        weight = max(_OVERHEAD_WEIGHT, 1 / self._count)
        seen = (measured, 1 / measured, took, took / measured)
        self._means = [mean + weight * (each - mean) for mean, each in zip(self._means, seen, strict=True)]
        size, inverse, self.mean_batch_seconds, ratio = self._means
        variance = max(0.0, size * inverse - 1)  # about the squared coefficient of variation of `measured`
        intercept = (size * ratio - self.mean_batch_seconds) / (
            variance + _SIZE_VARIANCE_FLOOR + _FEW_BATCHES / self._count
        )
        self.seconds = max(0.0, min(_OVERHEAD_SHRINKAGE * intercept, _MAX_OVERHEAD * self.mean_batch_seconds))


def rows_that_count(rows: int, width: int, valid_steps: int, padding: float) -> float:
    """How many rows of one length take as long as a batch of several lengths.

    A kernel that computes valid steps only computes, on average over the steps, `valid_steps / width` rows.

    Args:
        rows: The rows of the batch.
        width: Its width.
        valid_steps: The valid steps of all rows.
        padding: What a padded step costs, as a share of a valid one.
    """
    full = valid_steps / width
    return max(1.0, full + padding * (rows - full))


def seconds_of(times: Sequence[float], rows: float) -> float:
    """The seconds of a number of rows that need not be whole, from those of 0, 1, 2, ... rows."""
    below = int(rows)
    if below + 1 >= len(times):
        return times[-1]
    return times[below] + (rows - below) * (times[below + 1] - times[below])


def interpolated(points: Sequence[int], values: NDArray[np.float64], x: int) -> Any:
    """`values [..., points]` at `x`, `[...]`: linear between the points.

    Below the first point it is the first value. Past the last point the last slope continues; with one point only, the
    value grows in proportion.
    """
    if len(points) == 1:
        return values[..., 0] * max(1.0, x / points[0])
    right = max(1, min(bisect_left(points, x), len(points) - 1))
    share = max(0.0, (x - points[right - 1]) / (points[right] - points[right - 1]))
    return values[..., right - 1] + share * (values[..., right] - values[..., right - 1])


def _clipped(value: float, bound: float) -> float:
    return max(-bound, min(value, bound))
