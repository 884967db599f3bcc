"""Measures a cost table: runs the shapes of a grid that say most about the others, and predicts the rest.

A *shape* is a number of rows and a width; in code, its index in the flattened grid, `[rows * widths]`. Times are
predicted as logs, by a Gaussian process:

- Its mean is a sum of terms in the rows and the width, each with a factor of at least 0, fitted to the times so far.
  There are two fits, one without the square of the width: the mean lies between them, and where they differ the
  prediction is in doubt.
- Around the mean, shapes of similar rows, width or steps are off by similar shares. The part that the terms call fixed
  is less in doubt, because rows and width do not change it.
- More rows or a larger width never take less time, so a shape's time is between those of smaller and larger ones.

All times are predicted, also of shapes that ran: that removes noise. The *doubt* of a shape is the standard deviation
of its predicted log. On a device, each run is of the shape that lowers all doubts most for what it takes of the time
and of the runs that are left. On a processor, shapes run from the smallest to the largest that there is time for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.cost import SHORTEST_SECONDS, CostTable

MOST_RUNS: Final = 60  # of a device: each first run of a shape there is slow
FAILED_SECONDS: Final = 3600.0  # of a shape that cannot run: so dear that no batch has it
_MOST_WRONG: Final = 8.0  # a stored time may be so many times too long or too short: serving corrects as much (`drift`)
_ROUNDS: Final = 5  # in the budget of time, all shapes of a processor can run so many times: no further shape runs then
_WIDEST_SHARE: Final = 0.4  # most that one shape may take of such a round
# The padding cost: by batches of so many rows, as usual, in so many turns, while these take this part of the budget.
# One run takes at most a small part. The longest row is so many times as long as the shortest.
_MIXED_ROWS, _MIXED_ROUNDS, _MIXED_SHARE, _MIXED_RUNS, _MIXED_RATIO = 16, 8, 5, 80, 16
# Below and from these the cost is 0 and 1: on a busy machine as much is noise, and where padding costs so little, what
# batches by length save is less than what their fewer rows cost
_SKIPPED, _COMPUTED = 0.05, 0.9

# Standard deviations of logs around the mean, and by how many doublings apart shapes are still alike (to 1 / e)
_OFF_BY_ROWS, _ALIKE_ROWS = 0.5, 12.0
_OFF_BY_WIDTH, _ALIKE_WIDTHS = 0.3, 12.0
_OFF_BY_STEPS, _ALIKE_STEPS = 0.1, 10.0
_OFF_BY_BOTH, _ALIKE_ROWS_OF_WIDTH, _ALIKE_WIDTHS_OF_ROWS = 0.12, 3.0, 6.0  # rows that matter at some widths only
_OFF_BY_ANY, _ALIKE_ROWS_OF_ANY, _ALIKE_WIDTHS_OF_ANY = 0.1, 8.0, 4.0  # whatever share of a time is fixed
_MOST_OFF: Final = 3.0  # a log that is more off the mean was disturbed
_FEWEST_CHANGE: Final = 0.1  # share of a time that is not fixed, at least
_NOISE: Final = 0.045  # of one run, as a share of its time; on a processor, where no shape ran three times
_DIFFERENCES: Final = 2.0  # the noise of one run on a processor is so many times what the runs of a shape differ by,
_LEAST_NOISE: Final = 1e-4  # and at least so much
_MONOTONE_TOLERANCE: Final = 0.03  # by so much (log) a smaller shape may be slower than a larger one
_LEAST_VARIANCE: Final = 1e-6  # rounding errors would make it negative
_TERM_PENALTY: Final = 0.01  # of a term of the mean: it must lower the sum of squared relative errors by more
_RIDGE: Final = 1e-9  # makes equations of few shapes solvable
# Later runs by first ones (logs): the noise of one shape that ran twice, how much noise there may be before a first run
# says too little, and as single runs stall, which quantile of the shapes' errors it is and the most that one counts as.
# Then the noise of what is fixed in first runs, as a share of these: less than that is never left for the later run.
_PAIR_NOISE, _MOST_SPREAD, _SPREAD_QUANTILE, _MOST_ERROR, _FIXED_NOISE = 0.05, 0.08, 0.7, 1.0, 0.01
_DOUBT_POWER: Final = 1.5  # of how much the doubt of a shape counts beside that of others
_PRICE_POWER: Final = 0.8  # of what a run takes of what is left; 1 would leave wide shapes for too late
# A shape whose fastest run took so much longer than the others predict runs again, until it has so many runs.
_STALL_LOG, _STALL_DEVIATIONS, _MOST_CHECKS = 0.15, 2.0, 5


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
    run_lengths: Callable[[Sequence[int]], object] | None = None,
    stored: CostTable | None = None,
) -> CostTable:
    """Measures a cost table by calls of `run(rows, width)`, within `budget_seconds` and `most_runs`.

    A `stored` table, which may hold anything, is returned instead if the shapes that run first (the smallest, the one
    of most rows, and the widest) show that it is wrong by a factor of less than `_MOST_WRONG`.

    Of the runs of a shape the fastest counts.

    - A device (`most_runs`) runs the shapes that tell most of the others. A shape's first run is slow. If it takes
      about the same multiple of a later one for each shape, or so many seconds more, or both, a further shape runs once
      only, and its later runs are predicted by that (`_later`).
    - A processor (None) runs each new shape twice, and then all of them in turns, so that a busy period slows all of
      them. If it slowed only the small ones, the planner would make every batch too large. A turn goes from the largest
      shape down: right after a much larger one, a shape would find cold caches, as it seldom does in service. The noise
      of its times is what their runs differ by: other work makes a processor slower and faster within a second.

    A shape that took longer than a larger one was disturbed: it counts with the larger one's time. After a MemoryError,
    that shape, larger ones, and those of more steps than any that ran cost `FAILED_SECONDS`.

    `budget_seconds` are on `clock`. They begin anew if the first run takes them all: it was disturbed, perhaps, and one
    shape does not say what the others take. After that, `run_lengths(lengths)` runs batches of mixed lengths, for a
    fifth of that time, to measure `CostTable.padding_cost`; without it that is 1.
    """
    narrowest = min_width or multiple
    rows, widths = rows_grid(max_rows), grid(max(max_width, narrowest), smallest=narrowest)
    runs = _Runs(run, _Times(rows, widths, max_padded_steps), clock, budget_seconds, most_runs, stored)
    runs.run_on_processor() if most_runs is None else runs.run_on_device()
    if stored is not None and runs.times.agree(stored):
        return stored
    table = CostTable(rows, widths, runs.times.filled(), padding_cost=float(run_lengths is None), clock=clock)
    if run_lengths is not None:
        table.padding_cost = _padding_cost(run_lengths, table, narrowest, budget_seconds)
    return table


class _Runs:
    """Runs shapes for `measure`, within its budget; the arguments are those of `measure`."""

    def __init__(
        self,
        run: Callable[[int, int], object],
        times: _Times,
        clock: Callable[[], float],
        budget_seconds: float,
        most_runs: int | None,
        stored: CostTable | None,
    ) -> None:
        self._run, self.times, self._clock, self._stored = run, times, clock, stored
        self._budget_seconds = budget_seconds
        self._runs_left = math.inf if most_runs is None else float(most_runs)
        self._end = clock() + budget_seconds

    def run_on_processor(self) -> None:
        """Runs each new shape twice, and then all of them in turns; estimates the noise of their times."""
        times = self.times
        may_run = all(self._run_shape(shape) for shape in times.smallest_first(self._budget_seconds / _ROUNDS))
        ran = sorted(np.flatnonzero(times.runs).tolist(), key=times.steps.__getitem__, reverse=True)
        while may_run:
            may_run = all(self._run_shape(shape) for shape in ran)
        times.noise = max(_DIFFERENCES * float(np.median(times.differences or [_NOISE])), _LEAST_NOISE)
        times.most_off = math.inf  # each shape ran several times: none is off by a run that was held up

    def run_on_device(self) -> None:
        """Runs the shapes that tell most of the others."""
        while (
            shape := self.times.most_telling(self._end - self._clock(), self._runs_left)
        ) is not None and self._run_shape(shape):
            pass

    def _run_shape(self, shape: int) -> bool:
        """Runs a shape, and keeps its time; returns whether there is time for another run.

        Raises:
            MemoryError: Even the first shape does not fit into memory.
        """
        times, start = self.times, self._clock()
        try:
            self._run(int(times.rows[shape]), int(times.widths[shape]))
        except MemoryError:
            if not times.runs.any():
                raise
            times.fails |= times.at_most[shape]  # nor does any larger shape fit
        now = self._clock()
        self._runs_left -= 1
        self._end = now + self._budget_seconds if now > self._end and not times.runs.any() else self._end
        if not times.fails[shape]:
            times.add(shape, max(now - start, SHORTEST_SECONDS))
        return now <= self._end and self._runs_left > 0 and (self._stored is None or not times.agree(self._stored))


def _padding_cost(
    run_lengths: Callable[[Sequence[int]], object], table: CostTable, shortest: int, budget_seconds: float
) -> float:
    """Measures what a padding step costs over a valid one: from 0, where it is skipped, to 1.

    Three batches run in turns: a *full* one, whose lengths are all the width; a *mixed* one of the same shape, whose
    lengths grow by an equal factor from row to row, so that two thirds of its steps are padding; and a full one of
    fewer rows, with as many valid steps as the mixed one. If padding were skipped, the second would take as long as the
    third; if it were computed, as long as the first. The cost is where it lies between the two. The width is the
    largest with which a run takes a small part of `budget_seconds`. 1 if no lengths can be mixed.
    """
    rows, end = min(_MIXED_ROWS, int(table.rows[-1])), table.clock() + budget_seconds / _MIXED_SHARE
    usable = [width for width in table.grid_widths if width >= 2 * shortest]
    if rows == 1 or not usable:
        return 1.0
    most_seconds = budget_seconds / _MIXED_RUNS
    width = max((width for width in usable if table.seconds_of(rows, width) <= most_seconds), default=usable[0])
    mixed = np.geomspace(width, max(width / _MIXED_RATIO, shortest), rows).astype(int)
    full_rows = max(1, round(mixed.sum() / width))
    # The longer half, but for the longest, takes what is left to the steps of whole rows
    longer = mixed[1 : rows // 2 + 1]
    longer += np.diff(np.linspace(0, full_rows * width - mixed.sum(), len(longer) + 1).round().astype(int))
    mixed = mixed.clip(shortest, width)
    batches = ([width] * rows, mixed.tolist(), [width] * full_rows)
    fastest = [math.inf] * len(batches)
    for _ in range(_MIXED_ROUNDS):
        for batch, lengths in enumerate(batches):
            start = table.clock()
            run_lengths(lengths)
            fastest[batch] = min(fastest[batch], table.clock() - start)
        if table.clock() > end:
            break
    computed, seconds, skipped = fastest
    # Of few rows the third may have more or fewer steps: corrected by the table, which skips padding here
    skipped *= table.seconds_of(rows, width, int(mixed.sum())) / table.seconds_of(full_rows, width)
    padding_cost = float(np.clip((seconds - skipped) / max(computed - skipped, SHORTEST_SECONDS), 0.0, 1.0))
    return 0.0 if padding_cost < _SKIPPED else 1.0 if padding_cost >= _COMPUTED else padding_cost


class _Prediction(NamedTuple):
    """What the times so far say of all shapes, `[shapes]`; see the module."""

    logs: NDArray[np.float64]  # of the predicted seconds
    covariance: NDArray[np.float64]  # `[shapes, shapes]`, of their errors
    variances: NDArray[np.float64]  # its diagonal
    doubts: NDArray[np.float64]  # the roots of these, or less, where smaller and larger shapes bound the time
    # A shape to run again: its few runs took much longer than the others predict, or its first one lets expect less.
    stalled: int | None


class _Times:
    """The times of those shapes of a grid that ran, and what they predict for all. Arrays are `[shapes]`."""

    def __init__(self, rows: list[int], widths: list[int], max_padded_steps: int) -> None:
        self._grid = len(rows), len(widths)
        self.rows, self.widths = (axis.ravel() for axis in np.meshgrid(rows, widths, indexing="ij"))
        self.steps = self.rows * self.widths
        self.runs = np.zeros(len(self.rows), dtype=np.int64)
        self._first = np.full(len(self.rows), np.nan)  # seconds of the first run
        self._fastest = np.full(len(self.rows), np.nan)  # seconds of the fastest run
        self.differences: list[float] = []  # of the logs of each third or further run and the fastest before it
        self.noise, self.most_off = _NOISE, _MOST_OFF  # `measure` replaces them by those of a processor
        self.fails = np.full(len(self.rows), False)  # too large for the memory
        self._within = self.steps <= max_padded_steps
        self._within[0] = True  # a lone step is run, whatever the limits are
        narrowest, one_row = (self._within & (axis == axis[0]) for axis in (self.widths, self.rows))
        # These run first, however long they take: the smallest shape, the most rows, and the widest.
        self._corners = (0, int(np.flatnonzero(narrowest)[-1]), int(np.flatnonzero(one_row)[-1]))
        # `[i, j]`: whether shape j is as large as shape i, or larger
        self.at_most = (self.rows[:, None] <= self.rows) & (self.widths[:, None] <= self.widths)
        # What the process knows before a run: the terms of its mean, and covariances around it
        self._terms = np.stack(
            [np.ones_like(self.rows), self.widths, self.rows, self.steps, self.steps * self.widths], axis=1
        ).astype(np.float64)
        by_rows, by_width, by_steps = (
            np.abs(np.log2(axis)[:, None] - np.log2(axis)) for axis in (self.rows, self.widths, self.steps)
        )
        self._off_changing = (
            _OFF_BY_ROWS**2 * np.exp(-by_rows / _ALIKE_ROWS)
            + _OFF_BY_WIDTH**2 * np.exp(-by_width / _ALIKE_WIDTHS)
            + _OFF_BY_STEPS**2 * np.exp(-by_steps / _ALIKE_STEPS)
            + _OFF_BY_BOTH**2 * np.exp(-by_rows / _ALIKE_ROWS_OF_WIDTH - by_width / _ALIKE_WIDTHS_OF_ROWS)
        )
        self._off_any = _OFF_BY_ANY**2 * np.exp(-by_rows / _ALIKE_ROWS_OF_ANY - by_width / _ALIKE_WIDTHS_OF_ANY)

    def add(self, shape: int, seconds: float) -> None:
        """Counts a run of a shape, and keeps its seconds."""
        if not self.runs[shape]:
            self._first[shape] = seconds
        elif self.runs[shape] > 1:  # the first run may be slow
            self.differences.append(abs(math.log(seconds / self._fastest[shape])))
        self._fastest[shape] = np.fmin(self._fastest[shape], seconds)
        self.runs[shape] += 1

    def agree(self, table: CostTable) -> bool:
        """Whether a table has as large a grid, and the shapes that run first took about as long as it says."""
        return table.seconds.shape == self._grid and all(
            1 / _MOST_WRONG < self._fastest[shape] / table.predict(self.rows[shape], self.widths[shape]) < _MOST_WRONG
            for shape in self._corners
        )

    def smallest_first(self, round_seconds: float) -> Iterator[int]:
        """Each shape twice, as a processor runs them, while a round of all that ran takes `round_seconds` at most.

        A generator, which reads the times of the shapes before: the caller runs a shape before it asks for the next.
        """
        for shape in (*self._corners, *np.argsort(self.steps, kind="stable").tolist()):
            if self._within[shape] and not self.runs[shape] and not self.fails[shape]:
                longest = _WIDEST_SHARE * round_seconds  # one that was underestimated leaves time for others
                remaining = round_seconds - np.nansum(np.minimum(self._fastest, longest / 2))
                if shape in self._corners or self.filled().flat[shape] <= min(remaining, longest):
                    yield shape
                    if not self.fails[shape]:
                        yield shape

    def most_telling(self, seconds_left: float, runs_left: float) -> int | None:
        """The shape to run next on a device, with so many seconds and runs left; None if they suffice for no shape."""
        fixed, ratio, least_noise = self._first_runs()
        unclear = (self.runs == 1) & (_later(self._first, fixed, ratio, least_noise)[1] > _MOST_SPREAD)
        for shape in (*self._corners, *np.flatnonzero(unclear).tolist()):
            if self.runs[shape] < 2 and not self.fails[shape]:
                return int(shape)
        logs, covariance, variances, doubts, stalled = self._predict(*self._measured())
        if stalled is not None and math.exp(logs[stalled]) <= seconds_left:
            return stalled
        # 1. What a run of each shape takes. Where a first run says too little, a new shape runs twice.
        new, first = self.runs == 0, fixed[0] + ratio[0] * np.exp(logs)
        noise_of_once = _later(first, fixed, ratio, least_noise)[1]
        runs = np.where(new & (noise_of_once > _MOST_SPREAD), 2, 1)
        seconds = np.where(new, (first + np.exp(logs) * (runs - 1)) * np.exp(doubts), np.exp(logs))
        # 2. By how much it lowers the variances of all, the most doubtful first.
        noise = np.where(new, _NOISE**2 + (runs == 1) * noise_of_once**2, _NOISE**2 / np.maximum(1, 2 * self.runs - 1))
        bounded = doubts**2 / variances  # the shares of them that smaller and larger shapes leave
        may_run = self._within & ~self.fails
        gains = (np.where(may_run, bounded * doubts**_DOUBT_POWER, 0.0) @ covariance**2) * bounded / (variances + noise)
        # 3. For its share of the time or of the runs that are left.
        prices = np.maximum(seconds / max(seconds_left, SHORTEST_SECONDS), runs / runs_left)
        scores = np.where(may_run & (prices <= 1), gains / prices**_PRICE_POWER, 0.0)
        best = int(scores.argmax())
        return best if scores[best] > 0 else None

    def filled(self) -> NDArray[np.float64]:
        """`[rows, widths]`: the predicted seconds of the whole grid; the first shape must have been run."""
        shapes, seconds, noise = self._measured()
        filled = np.exp(self._predict(shapes, seconds, noise).logs)
        too_many = self.fails.any() & (self.steps > self.steps[shapes].max())
        too_many |= self.fails & ~self.at_most[:, shapes].any(axis=1)  # where a larger one ran, memory was short once
        return np.where(too_many, FAILED_SECONDS, np.maximum(filled, SHORTEST_SECONDS)).reshape(self._grid)

    def _first_runs(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """How much longer first runs take than later ones, by the shapes that ran twice; for `_later`.

        A first run takes `fixed + ratio * later` seconds. Compared are these *ways*: a ratio alone, and so many seconds
        alone, as each of the shapes has it; and both, as each two of the shapes have them. Several ways may explain the
        shapes about as well: the ratio as well as the seconds, say, if all of them take equally long.

        Returns:
            `fixed` and `ratio` of the ways that explain the shapes about as well as the best, `[ways]`, the best first;
            and the noise of the logs of later runs that the best one predicts. Before a shape ran twice, nothing is
            known.
        """
        first, later = self._first[self.runs > 1], self._fastest[self.runs > 1]
        if not len(first):
            return np.zeros(1), np.ones(1), 1.0
        some, shorter = np.nonzero(later[:, None] > later)
        slopes = (first[some] - first[shorter]) / (later[some] - later[shorter])
        fixed = np.maximum(0, [*np.zeros(len(first)), *(first - later), *(first[some] - slopes * later[some])])
        ratio = np.maximum(1, [*(first / later), *np.ones(len(first)), *slopes])
        # Both together explain any two shapes, so they must be better than one alone. Of few shapes more ways may hold.
        off = np.abs(_later(first, fixed, ratio, 0.0)[0] - np.log(later))
        errors = np.minimum(off, _MOST_ERROR).mean(axis=1) + _PAIR_NOISE / 2 * ((fixed > 0) & (ratio > 1))
        ways = np.argsort(errors, kind="stable")[: np.sum(errors <= errors.min() + 3 * _PAIR_NOISE / len(first))]
        return (
            fixed[ways],
            ratio[ways],
            math.hypot(np.quantile(off[ways[0]], _SPREAD_QUANTILE), _PAIR_NOISE / math.sqrt(len(first))),
        )

    def _measured(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """The shapes that ran, their seconds, and the noise: the standard deviations of the logs of these.

        None takes longer than a larger shape that ran.
        """
        shapes = np.flatnonzero(self.runs)
        once = self.runs[shapes] == 1
        logs, noise_of_once = _later(  # a processor runs its shapes twice, and needs none of it
            self._first[shapes], *(self._first_runs() if once.any() else (np.zeros(1), np.ones(1), 0.0))
        )
        seconds = np.where(once, np.exp(logs[0]), self._fastest[shapes])
        seconds = np.where(self.at_most[np.ix_(shapes, shapes)], seconds, np.inf).min(axis=1)
        noise = np.where(once, np.hypot(_NOISE, noise_of_once), self.noise / np.maximum(1, self.runs[shapes] - 1))
        return shapes, seconds, noise

    def _predict(
        self, shapes: NDArray[np.int64], seconds: NDArray[np.float64], noise: NDArray[np.float64]
    ) -> _Prediction:
        """Predicts the times of all shapes from the `seconds` of those `shapes` that ran.

        `noise`: the standard deviations of the logs of these.
        """
        # 1. The process before the runs: its mean, and covariances around it
        few_terms, any_terms = _fitted_sums(self._terms, shapes, seconds)
        lower, upper = np.log(few_terms.sum(axis=1)), np.log(any_terms.sum(axis=1))
        mean, differ = (lower + upper) / 2, (lower - upper) / 2
        changing = np.maximum(_FEWEST_CHANGE, 1 - few_terms[:, 0] / np.exp(mean))
        prior = self._off_changing * np.outer(changing, changing) + self._off_any + np.outer(differ, differ)
        # 2. The process after them
        off, of_shapes = np.clip(np.log(seconds) - mean[shapes], -self.most_off, self.most_off), prior[:, shapes]
        inverse = np.linalg.inv(of_shapes[shapes] + np.diag(noise**2))
        logs = mean + of_shapes @ inverse @ off
        covariance = prior - of_shapes @ inverse @ of_shapes.T
        # 3. Bounds by smaller and larger shapes
        times = np.log(seconds)
        lower = np.where(self.at_most[shapes], times[:, None], -np.inf).max(axis=0)
        upper = np.where(self.at_most[:, shapes], times, np.inf).min(axis=1)
        variances = np.maximum(np.diag(covariance), _LEAST_VARIANCE)
        doubts = np.minimum(np.sqrt(variances), (upper - lower) / 2 + _MONOTONE_TOLERANCE)
        # 4. By how much each time is longer than the others predict, or shorter, if it follows from a first run only
        longer, certainty = inverse @ off / np.diag(inverse), np.sqrt(np.diag(inverse))
        stalls = np.where(
            ((longer > _STALL_LOG) & (self.runs[shapes] < _MOST_CHECKS))
            | ((longer < -_STALL_LOG) & (self.runs[shapes] == 1)),
            np.abs(longer) * certainty,
            0.0,
        )
        stalled = int(shapes[stalls.argmax()]) if stalls.max() > _STALL_DEVIATIONS else None
        return _Prediction(logs, covariance, variances, doubts, stalled)


def _later(
    first: NDArray[np.float64], fixed: NDArray[np.float64], ratio: NDArray[np.float64], noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicts later runs by first ones, which take `fixed + ratio * later` seconds: see `_Times._first_runs`.

    Returns:
        The logs of the later runs' seconds, `[ways, shapes]`, and the noise of those of the first way, `[shapes]`.
        There is much noise where the ways differ, as they do for a shape that takes much longer than all that ran
        twice, and where nearly all of a first run is fixed.
    """
    share = np.maximum(_FIXED_NOISE, 1 - fixed[:, None] / first)  # of the first run: what is not fixed
    logs = np.log(first * share / ratio[:, None])
    return logs, np.hypot(np.hypot(noise, _FIXED_NOISE / share[0]), np.ptp(logs, axis=0) / 2)


def _fitted_sums(
    terms: NDArray[np.float64], shapes: NDArray[np.int64], seconds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fits two sums of `terms [all shapes, terms]` to the seconds of those `shapes` that ran.

    Each term gets a factor, at least 0, so that the sum of squared relative errors is smallest; one that lowers it by
    less than `_TERM_PENALTY` gets 0. Returns the terms times their factors, `[all shapes, terms]`, twice: with 0 for
    the last term, and with any factors.
    """
    relative = terms[shapes] / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    gram, target = (relative / scale).T @ (relative / scale), (relative / scale).sum(axis=0)
    # The least squares of each choice of terms, `[choices, terms]`: the factors of the others are 0.
    chosen = np.array([*product((0.0, 1.0), repeat=len(scale))][1:])
    grams = chosen[:, :, None] * gram * chosen[:, None, :] + (1 - chosen + _RIDGE)[:, :, None] * np.eye(len(scale))
    factors = np.linalg.solve(grams, (chosen * target)[:, :, None])[:, :, 0]
    errors = ((factors @ gram) * factors).sum(axis=1) - 2 * factors @ target + _TERM_PENALTY * chosen.sum(axis=1)
    errors[(factors < 0).any(axis=1)] = math.inf
    few_terms, any_terms = (
        terms * factors[each.argmin()] / scale for each in (np.where(chosen[:, -1] == 0, errors, math.inf), errors)
    )
    return few_terms, any_terms
