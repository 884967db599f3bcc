"""Predicted seconds of a batch, by its rows and its width, on the machine that serves.

The table is measured when a model is loaded, on a grid of shapes (`batching.cost_measurement`). It is made monotone
(more rows or more steps never cost less) and is interpolated linearly between the points of the grid. That fits
recurrent models: their time is linear in the width, and piecewise linear in the rows until the processor's vectors are
full.

While serving, the table learns two numbers from the batches that run:

| number | meaning |
|---|---|
| drift | how many times as long every batch takes as it did at load: one factor for all shapes |
| overhead | the seconds that each batch takes on top of what its shape took at load, whatever its shape |

A single slow run moves either of them by a few percent at most.
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
        clock: The clock of the seconds, for the table and for `observe`. By default the processor time of the running
            thread, which other work on the machine does not change. A run on a device needs the wall clock.

    Attributes:
        drift: How many times as long a batch takes as it did at load.
        overhead: The seconds of every batch that its shape does not explain.

    Raises:
        ValueError: The rows, the widths or the seconds do not form such a grid.
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

    def predict(self, rows: int, width: int) -> float:
        """Predicted seconds of one batch, with overhead and drift.

        Past the end of the grid they grow with the last slope over the width, and in proportion to the rows.
        """
        return self.column(width, rows).seconds[rows] * self.drift

    def observe(self, rows: int, width: int, seconds: float) -> None:
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
        """
        if not 0 < seconds < math.inf:
            return
        with self.learning:
            overhead, snapshot = self.overhead, self._snapshot
            measured = self.column(width, rows).seconds[rows] - snapshot.overhead
            expected = (measured + overhead.seconds) * self.drift
            error = _clipped(math.log(seconds) - math.log(expected), _MAX_LOG_ERROR)
            self._log_drift = _clipped(self._log_drift + _DRIFT_WEIGHT * error, _MAX_LOG_DRIFT)
            self.drift = math.exp(self._log_drift)
            if measured > SHORTEST_SECONDS:
                overhead.observe(measured, expected * math.exp(error) / self.drift)
            snapshot = self._snapshot  # `column` may have replaced it
            if abs(overhead.seconds - snapshot.overhead) > _OVERHEAD_STEP * overhead.mean_batch_seconds:
                self._snapshot = _Snapshot(snapshot.rows, overhead.seconds, self._measured + overhead.seconds, {})

    def to_json(self) -> dict[str, Any]:
        """Grid and seconds, for reports and for the model directory."""
        return {"rows": self.rows.tolist(), "widths": self.widths.tolist(), "seconds": self.seconds.tolist()}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, clock: Callable[[], float] = time.thread_time) -> CostTable:
        """The table that `to_json` wrote."""
        return cls(data["rows"], data["widths"], np.asarray(data["seconds"], dtype=np.float64), clock=clock)


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
