"""Predicts the seconds of a batch by its rows and its width, on the machine that serves.

The table is measured at load, on a grid of shapes (`batching.cost_measurement`), made monotone, and interpolated
linearly. That fits recurrent models: linear in the width, piecewise linear in the rows until the vectors are full. The
grid is of batches of one length. A batch of mixed lengths costs what as many rows of its longest length cost as have
its *charged* steps: its valid steps, and its padding times `padding_cost` (a fraction of a row is interpolated). That
is a third number of the model, kernels and processor, measured at load, too: 0 where padding is skipped, 1 where it is
computed as valid steps are. While serving, two numbers are learned; a single slow run changes each by a few percent at
most:

| number | meaning |
|---|---|
| drift | how many times as long every batch takes as it did at load: one factor for all shapes |
| overhead | the seconds that each batch takes on top of what its shape took at load, whatever its shape |
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAX_LOG_ERROR: Final = 0.7  # bound on log(seconds / predicted): a run that was delayed has little effect
_DRIFT_WEIGHT: Final = 0.05  # weight of one run in the drift: it follows a change within about 20 batches
_OVERHEAD_WEIGHT: Final = 0.01  # weight of one run; low, as the overhead is estimated from small differences
_SIZE_VARIANCE_FLOOR: Final = 0.03  # regularisation: batches of one size do not show what a batch of size 0 would take
_FEW_BATCHES: Final = 10  # regularisation: after N batches, this over N is added to the floor
_MAX_OVERHEAD: Final = 0.25  # as a share of the mean batch's seconds
_OVERHEAD_SHRINKAGE: Final = 0.5  # the part of the estimate that is used: batches that are too large cost most
NEARLY_BEST: Final = 1.05  # a row that costs at most so many times the cheapest counts as cheapest
# The same for `balanced_rows`: the cheapest of ten points is some 3 % luckier than one of them
_NEARLY_BALANCED: Final = 1.08
MOST_BALANCED: Final = 64  # of more rows in order of arrival, the first wait for the last, and nothing is saved
# A device, where one row costs nearly what all cost, is told from a processor, where further rows cost time: of the
# widest that wait, a row alone costs as much as 64 or more in a full batch there (`benchmarks.devices`), and with 400
# steps 1.9 times as much at most on a processor (the models of `benchmarks.planning`).
MANY_FREE: Final = 6
TAIL: Final = 1.1  # a full batch of a class of widths may take so many times as long as one with just enough rows
_OVERHEAD_STEP: Final = 0.03  # columns are computed again after a change by this share of the mean batch's seconds
SHORTEST_SECONDS: Final = 1e-7  # of a measured run: a coarse clock may read 0
_MAX_LOG_DRIFT: Final = 3.5  # serving scales the measured times by 33 at most
_MAX_COLUMNS: Final = 1024  # widths whose column is cached; past it the cache is emptied


class Column(NamedTuple):
    """Predicted seconds of batches of one width, which are to be multiplied by `CostTable.drift`."""

    seconds: list[float]  # `seconds[n]`: of a batch of n rows; 0 for n = 0
    added_seconds: list[float]  # `added_seconds[n]`: of one row more than n; 0 for the most rows
    cheapest_rows: list[int]  # `cheapest_rows[n]`: the number of rows, at most n, with the fewest seconds a row
    enough_rows: int  # the smallest number of rows whose seconds a row are within 5 % of the lowest
    least_row_seconds: float  # the lowest seconds a row of any number of rows
    balanced_rows: int  # the largest power of two within 8 % of it, but at most `MOST_BALANCED`: see `composition`

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Column:
        """The column for the seconds of batches of 1, 2, ... rows, `[rows]`, which do not fall."""
        counts = np.arange(1, len(seconds) + 1)
        row_seconds = seconds / counts
        lowest = np.minimum.accumulate(row_seconds)
        cheapest = np.maximum.accumulate(np.where(row_seconds <= lowest, counts, 0))
        cheap = counts[row_seconds <= NEARLY_BEST * lowest[-1]]
        most = counts[row_seconds <= _NEARLY_BALANCED * lowest[-1]][-1]
        balanced = max(int(cheap[0]), min(2 ** int(math.log2(most)), MOST_BALANCED))
        added = np.diff(seconds, prepend=0.0, append=seconds[-1])
        return cls(
            [0.0, *seconds.tolist()],
            added.tolist(),
            [0, *cheapest.tolist()],
            int(cheap[0]),
            float(lowest[-1]),
            balanced,
        )

    def rows_within(self, row_limit: int, seconds: float) -> int:
        """The most rows, at most `row_limit`, that are predicted to run within `seconds`; at least 1."""
        return (
            row_limit
            if self.seconds[row_limit] <= seconds
            else max(1, bisect_right(self.seconds, seconds, 1, row_limit + 1) - 1)
        )

    def rows_of_first(self, count: int, row_limit: int, seconds: float) -> int:
        """How many of `count` sequences run first: at most `row_limit`, and within the allowed `seconds`.

        The cheapest number of rows; or, if the rest is less than that, the cheaper way to run all in two batches or in
        one.
        """
        most, times = self.rows_within(row_limit, seconds), self.seconds
        rows = self.cheapest_rows[most]
        if count >= 2 * rows:
            return rows
        return min(range(min(count, most), (count - 1) // 2, -1), key=lambda rows: times[rows] + times[count - rows])

    def full_rows(self, row_limit: int, seconds: float, waiting: int) -> int:
        """The rows of a full batch of a class: those that are enough, and more where those take little longer.

        While a class fills a batch of `rows`, half of them wait on average, beside what waits of the other classes. So
        all wait for about `waiting + rows / 2` sequences, and half as many rows may answer sooner where few wait. The
        result is at most `row_limit`, and its run within the allowed `seconds`.
        """
        times, enough, half = self.seconds, self.enough_rows, -(-self.enough_rows // 2)
        rows = half if times[half] * (waiting / half + 0.5) < times[enough] * (waiting / enough + 0.5) else enough
        return self.rows_within(row_limit, min(seconds, TAIL * times[rows]))

    def even_batches(self, row_limit: int, seconds: float, count: int) -> tuple[float, int]:
        """The seconds of all batches in which `count` sequences run, one after the other, and their rows.

        The last batch may have fewer. A batch has at most `row_limit` rows, and runs within the allowed `seconds`.
        Compared are the number of rows that is cheapest, and equal batches of about as many rows as are enough. Of
        those with which all are done nearly soonest, it is the one whose rows are cheapest.
        """
        times, most = self.seconds, min(count, self.rows_within(row_limit, seconds))
        if count <= min(most, self.enough_rows):
            return times[count], count
        batches = max(-(-count // most), count // self.enough_rows)
        sizes = (self.cheapest_rows[most], -(-count // batches), -(-count // (batches + 1)))
        seconds_of_all = {rows: -(-count // rows) * times[rows] for rows in sizes}
        latest = NEARLY_BEST * min(seconds_of_all.values())
        rows = min([rows for rows in sizes if seconds_of_all[rows] <= latest], key=lambda rows: times[rows] / rows)
        return seconds_of_all[rows], rows


class _Snapshot(NamedTuple):
    """The grid with the learned overhead, and the columns computed from it, which are to be multiplied by the drift.

    Never changed but for `columns`; replaced when the overhead, the measured times or the number of rows change.
    """

    rows: int  # of the largest batch in a column
    overhead: float  # seconds, included in `seconds`
    seconds: NDArray[np.float64]  # `[rows, widths]` of the grid, with the overhead
    columns: dict[int, Column]  # cached, by width


class CostTable:
    """Seconds of a batch by rows and width, from `seconds [rows, widths]` of an ascending grid, made monotone here.

    `padding_cost`: of a padding step, over a valid one, from 0 to 1. `clock` is that of the seconds: by default the
    processor time of the running thread, which other work on the machine does not change. A run on a device needs the
    wall clock. Raises ValueError if the arguments are not such a grid, or no such cost.
    """

    def __init__(
        self,
        rows: Sequence[int],
        widths: Sequence[int],
        seconds: NDArray[np.float64],
        *,
        padding_cost: float = 1.0,
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
        if not 0 <= padding_cost <= 1:
            raise ValueError("a cost table wants the cost of a padding step from 0 to 1")
        self.padding_cost = padding_cost
        self._measured = np.maximum.accumulate(np.maximum.accumulate(measured, axis=0), axis=1)
        self.drift = 1.0
        self.overhead = Overhead()
        self._log_drift = 0.0
        self.learning = threading.RLock()  # reentrant: `observe` predicts, and a prediction may add rows
        self._snapshot = _Snapshot(0, 0.0, self._measured, {})  # replaced, never changed, by `observe` in any thread
        self._row_weights: dict[int, NDArray[np.float64]] = {}  # `[rows, grid rows]` by rows, for interpolation
        self.grid_widths: list[int] = self.widths.tolist()

    @property
    def seconds(self) -> NDArray[np.float64]:
        """`[rows, widths]` of the grid, with overhead and drift; monotone."""
        return (self._measured + self._snapshot.overhead) * self.drift

    def column(self, width: int, rows: int) -> Column:
        """The predicted seconds of batches of one width, by their rows, not multiplied by the drift.

        The column has at least `rows` rows. It is computed from the present snapshot of the grid, and cached in it.
        """
        snapshot = self._snapshot
        if rows > snapshot.rows:
            with self.learning:  # another thread may have replaced the snapshot meanwhile
                snapshot = self._renew(rows=max(rows, self._snapshot.rows))
        columns = snapshot.columns
        column = columns.get(width)
        if column is None:
            if len(columns) >= _MAX_COLUMNS:
                columns.clear()
            column = columns[width] = Column.of(self.computed(width, snapshot.rows, snapshot.seconds))
        return column

    def _renew(self, **changes: Any) -> _Snapshot:
        """Replaces the snapshot by one with the `changes` of fields, and returns it; `learning` is locked.

        A plan needs the columns of all widths that wait. Those in use are computed here, in the thread that learns, and
        not in a decision, for which the batcher is locked.
        """
        previous = self._snapshot
        snapshot = previous._replace(columns={}, **changes)
        for width in list(previous.columns):
            snapshot.columns[width] = Column.of(self.computed(width, snapshot.rows, snapshot.seconds))
        self._snapshot = snapshot
        return snapshot

    def computed(self, width: int, rows: int, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The seconds `[rows]` of 1 to `rows` rows of a width, interpolated in the grid's `seconds [rows, widths]`.

        First over the widths, then over the rows; past the most rows of the grid in proportion to the rows.
        """
        weights = self._row_weights.get(rows)
        if weights is None:  # linear interpolation as a matrix: a unit vector for each point of the grid
            counts, unit_vectors = np.arange(1, rows + 1), np.eye(len(self.rows))
            within_grid = np.stack([np.interp(counts, self.rows, vector) for vector in unit_vectors], axis=1)
            weights = self._row_weights[rows] = within_grid * np.maximum(1.0, counts / self.rows[-1])[:, None]
        # Past the widest point, the slope of many rows may be smaller than the slope of few: accumulate again.
        at_width = np.maximum.accumulate(interpolated(self.grid_widths, seconds, width))
        return np.asarray(np.maximum.accumulate(weights @ at_width), dtype=np.float64)

    def predict(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of one batch, with overhead and drift; past the grid they grow with its last slope."""
        return self.seconds_of(rows, width, valid_steps) * self.drift

    def seconds_of(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of one batch, with overhead, without drift; without `valid_steps`, of equally long rows."""
        column, charged_rows = self.column(width, rows), self.charged_rows(rows, width, valid_steps)
        whole_rows = int(charged_rows)
        return column.seconds[whole_rows] + (charged_rows - whole_rows) * column.added_seconds[whole_rows]

    def charged_rows(self, rows: int, width: int, valid_steps: int | None) -> float:
        """As many rows of the whole width cost what this batch costs; without `valid_steps`, all of them."""
        if valid_steps is None:
            return rows
        return rows - (1 - self.padding_cost) * (rows - max(1.0, valid_steps / width))

    def measured_seconds(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """What a batch of this shape took when it was measured: without overhead and drift."""
        return self.seconds_of(rows, width, valid_steps) - self._snapshot.overhead

    def observe(self, rows: int, width: int, seconds: float, valid_steps: int | None = None) -> float:
        """Learns drift and overhead from a batch that took `seconds`, each by a small bounded step.

        Seconds of 0, below, or infinity are ignored. There is one drift for all shapes: with one for each number of
        rows, those that did not occur looked cheap or expensive beside those that did. The overhead is the work for a
        batch from its plan to its scores that the measurement at load left out, or did with warm processor caches.
        Without it, batches are too small.

        `rows`, `width` and `valid_steps` are those of the batch, as `predict` takes them.

        Returns the log of `seconds` over what was predicted, at most `_MAX_LOG_ERROR` from 0; 0 if they are ignored.
        """
        if not 0 < seconds < math.inf:
            return 0.0
        with self.learning:
            overhead, measured = self.overhead, self.measured_seconds(rows, width, valid_steps)
            expected = (measured + overhead.seconds) * self.drift
            error = _clipped(math.log(seconds) - math.log(expected), _MAX_LOG_ERROR)
            self._log_drift = _clipped(self._log_drift + _DRIFT_WEIGHT * error, _MAX_LOG_DRIFT)
            self.drift = math.exp(self._log_drift)
            if measured > SHORTEST_SECONDS:
                # The seconds as they are clipped, without the drift
                overhead.observe(measured, expected * math.exp(error) / self.drift)
            if abs(overhead.seconds - self._snapshot.overhead) > _OVERHEAD_STEP * overhead.mean_batch_seconds:
                self._renew(overhead=overhead.seconds, seconds=self._measured + overhead.seconds)
        return error

    def to_json(self) -> dict[str, Any]:
        """The table with overhead and drift, as the model directory stores it."""
        return {
            "rows": self.rows.tolist(),
            "widths": self.widths.tolist(),
            "seconds": self.seconds.tolist(),
            "padding_cost": self.padding_cost,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], *, clock: Callable[[], float] = time.thread_time) -> CostTable:
        """The table that `to_json` wrote."""
        return cls(
            data["rows"],
            data["widths"],
            data["seconds"],
            padding_cost=float(data["padding_cost"]),
            clock=clock,
        )


class Overhead:
    """Estimates the fixed overhead of a batch: the intercept of a weighted least-squares fit, regularised.

    The fit is `seconds = overhead + slope * measured`, where `measured` are the seconds of the batch's shape at load.
    Its weights are `1 / measured`, as the times of long batches vary more than those of short ones.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # the estimate
        self.mean_batch_seconds = 0.0
        self.count = 0  # of batches
        self._means = [0.0, 0.0, 0.0, 0.0]  # of measured, 1 / measured, seconds, seconds / measured

    def observe(self, measured: float, seconds: float) -> None:
        """Updates the estimate by a batch that ran; both arguments are above 0.

        `measured` are the seconds of its shape at load; `seconds` are those it took, divided by the drift.
        """
        self.count += 1
        weight = max(_OVERHEAD_WEIGHT, 1 / self.count)  # moving averages, of all batches while they are few
        sample = (measured, 1 / measured, seconds, seconds / measured)
        self._means = [mean + weight * (value - mean) for mean, value in zip(self._means, sample, strict=True)]
        mean_measured, mean_inverse, self.mean_batch_seconds, mean_ratio = self._means
        # The closed form of the weighted fit, with a regularised denominator
        variance = max(0.0, mean_measured * mean_inverse - 1)  # about the squared coefficient of variation
        intercept = (mean_measured * mean_ratio - self.mean_batch_seconds) / (
            variance + _SIZE_VARIANCE_FLOOR + _FEW_BATCHES / self.count
        )
        self.seconds = max(0.0, min(_OVERHEAD_SHRINKAGE * intercept, _MAX_OVERHEAD * self.mean_batch_seconds))


def interpolated(points: Sequence[int], values: NDArray[np.float64], x: int) -> Any:
    """`values [..., points]`, given at ascending `points`, interpolated linearly at `x`: an array `[...]`.

    Before the first point its value; past the last one the last slope, or in proportion to `x` if there is one point.
    """
    if len(points) == 1:
        return values[..., 0] * max(1.0, x / points[0])
    right = max(1, min(bisect_left(points, x), len(points) - 1))
    left_point, right_point = points[right - 1], points[right]
    fraction = max(0.0, (x - left_point) / (right_point - left_point))
    return values[..., right - 1] + fraction * (values[..., right] - values[..., right - 1])


def _clipped(value: float, bound: float) -> float:
    return max(-bound, min(value, bound))
