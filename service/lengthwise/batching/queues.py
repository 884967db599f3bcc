"""Who waits, and in which queue.

A `ModelQueue` is one model's queue. A `PendingRequest` is one caller who waits for the answers to all of its sequences;
a `QueuedSequence` is one of these sequences, the unit of planning. `ModelQueues` says whose turn it is: the runners are
shared by time, so that a flooded model takes nothing from a quiet one. Nothing here locks: the batcher does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from lengthwise.batching.buckets import Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.batching.pending import PendingSequences, Waiting
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.telemetry.metrics import ModelMetrics

R = TypeVar("R")

TURN_SECONDS: Final = 0.02
"""How long a batch runs with more rows than are worth it."""
SHARED_TURN_SECONDS: Final = 0.002
"""The same where there are other models: no batch can be interrupted for their sake, and a few rows at a time gain
nearly all that batching can."""
FIRST_RUNS: Final = 4
"""How many batches of a model runners run before the event loop may: its costs were measured with zeros only."""
_USED: Final = attrgetter("used_seconds")
_WOKEN_LATE_SECONDS: Final = 0.005
"""How late a busy machine may wake a runner that waited for company: nobody's deadline is missed for that."""

Run = Callable[[PaddedBatch, bool], Sequence[R]]
"""Runs a padded batch, with attention or without: one result for each row."""


class Timing(NamedTuple):
    """Where a ticket's time went, in seconds."""

    queue: float
    inference: float


class ModelQueue(Generic[R]):
    """One model's queue.

    Args:
        name: For logs.
        run: Runs a padded batch.
        cost: What batches cost; learns from those that run.
        metrics: Where its figures are counted.
        limits: What one batch may be.
        multiple: Widths are multiples of it.
        buckets: The shapes that batches have; None where any will do.
        steady: Whether a run's time follows from its batch's shape; the event loop runs no others.
    """

    def __init__(
        self,
        name: str,
        run: Run[R],
        cost: CostTable,
        metrics: ModelMetrics,
        limits: BatchLimits,
        *,
        multiple: int = 4,
        buckets: Buckets | None = None,
        steady: bool = True,
    ) -> None:
        self.name = name
        self.run = run
        self.cost = cost
        self.metrics = metrics
        self.limits = replace(limits, multiple=multiple)
        self._limits_within: dict[tuple[float, float], BatchLimits] = {}
        self.multiple = multiple
        self.buckets = buckets
        self.pool = PendingSequences()
        self.cost_steps = 0
        self.inflight = 0
        self.closed = False
        self.used_seconds = 0.0
        self.steady = steady
        self.first_runs = FIRST_RUNS  # so many of its first batches are still to come
        self.runners_until = 0.0  # on the batcher's clock: until then the event loop runs none of its batches
        self.pause_seconds = 0.0  # how long that was from the run that was its reason

    def limits_within(self, seconds: float, turn_seconds: float) -> BatchLimits:
        """The limits with these of the time; kept, as there are only a few of them."""
        limits = self._limits_within.get((seconds, turn_seconds))
        if limits is None:
            limits = replace(self.limits, seconds=min(seconds, self.limits.seconds), turn_seconds=turn_seconds)
            self._limits_within[seconds, turn_seconds] = limits
        return limits

    def width_of(self, length: int) -> int:
        """What a sequence's batch costs the width of, if it is the longest there: its bucket's, where there are any.

        Where there are none it is its own length: the processor's recurrent kernels end at the longest sequence, so
        the steps that rounding adds are next to free, and to plan as if they were not wastes what is saved.
        """
        return length if self.buckets is None else self.buckets.width_of(length)

    def fits(self, seconds: float) -> bool:
        """Whether its next batch takes no longer, with as many rows as are worth waiting for; something waits.

        What a plan can start from counts: a long sequence that ran alone, to be short enough, would cost twice as much.
        """
        urgent, hurried = self.pool.most_urgent(), self.pool.earliest_deadline()
        width = 0 if urgent is None else urgent.width
        if hurried is not None and hurried.width > width:
            width = hurried.width
        column = self.cost.column(width, self.limits.rows)
        return column.seconds[min(len(self.pool), column.enough)] * self.cost.slower <= seconds

    def charge(self, rows: int, width: int, seconds: float) -> float:
        """The seconds of the runners that a batch counts for: those it took, but no more than were predicted.

        One that something else on the machine held up must not cost its model the turns of a second.
        """
        return min(seconds, self.cost.predict(rows, width))

    def padded(self, sequences: Sequence[Steps]) -> PaddedBatch:
        """Sequences as the batch that runs."""
        if self.buckets is None:
            return pad(sequences, multiple=self.multiple)
        width = self.buckets.width_of(max(len(steps) for steps in sequences))
        return pad(sequences, width=width, rows=self.buckets.rows_of(len(sequences), width))


class Waiter(Protocol):
    """What a ticket completes, once, on the event loop: the part of a future that completing needs."""

    def done(self) -> bool:
        """Whether it is complete, or was cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Takes what `finish` made."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Takes why there is none."""


@dataclass(eq=False, slots=True)
class PendingRequest(Generic[R]):
    """One caller who waits for the answers to all of its sequences.

    Attributes:
        lane: The model's.
        future: What is completed: an `asyncio.Future` that the caller awaits, or the `Waiter` that it gave. A caller
            that stops waiting calls `Batcher.withdraw`.
        trace: Its caller's, for whoever follows batches; nothing here looks at it.
    """

    lane: ModelQueue[R]
    future: Any
    finish: Callable[[list[R], Timing], Any]
    attention: bool
    results: list[R | None]
    remaining: int
    trace: Any = None
    entries: list[QueuedSequence[R]] = field(default_factory=list, init=False)
    settled: bool = False
    timer: asyncio.TimerHandle | None = None
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


@dataclass(eq=False, slots=True)
class QueuedSequence(Waiting, Generic[R]):
    """One sequence that waits; `cost` in padded steps, as the queue is counted."""

    steps: Steps = field(kw_only=True)
    cost: int = field(kw_only=True)
    arrival: float = field(kw_only=True)
    index: int = field(kw_only=True)
    ticket: PendingRequest[R] = field(kw_only=True)


class ModelQueues:
    """The lanes of all models, and whose turn it is.

    Args:
        max_wait_seconds: Longest that a sequence waits for company while a runner is idle.
    """

    def __init__(self, max_wait_seconds: float = 0.0) -> None:
        self._max_wait = max_wait_seconds
        self._lanes: list[ModelQueue[Any]] = []
        self._used_seconds = 0.0  # of the lane that was served last: what a lane that was idle starts from

    def __iter__(self) -> Iterator[ModelQueue[Any]]:
        """All lanes, closed ones too while anything waits or runs in them."""
        return iter(self._lanes)

    def open(self, lane: ModelQueue[Any]) -> None:
        """Adds a lane."""
        self._lanes.append(lane)

    def forget_if_done(self, lane: ModelQueue[Any]) -> None:
        """Removes a lane that is closed and has nothing waiting or running; a late call in it brings it back."""
        if lane.closed and not lane.pool and not lane.inflight and lane in self._lanes:
            self._lanes.remove(lane)
            lane.pool = PendingSequences()  # its orders may hold tickets of long ago, and these the lane

    def wake(self, lane: ModelQueue[Any]) -> None:
        """Something is about to wait in a lane: if nothing did, it has saved up no claim on the runners."""
        if lane.closed and lane not in self._lanes:
            self._lanes.append(lane)
        if not lane.pool:
            lane.used_seconds = max(lane.used_seconds, self._used_seconds)

    def beyond_share(self, lane: ModelQueue[Any], cost: int, most: int) -> bool:
        """Whether a lane would hold more than its even share of a queue.

        In a full queue a lane may still fill its share: a flooded model must not have the others refused.

        Args:
            lane: Where something is about to wait.
            cost: Its padded steps.
            most: Padded steps that the queue holds.
        """
        return lane.cost_steps + cost > most // max(1, len(self._lanes))

    def turn_seconds(self) -> float:
        """How long a batch is planned for that has more rows than are worth it; see `BatchLimits`."""
        return SHARED_TURN_SECONDS if len(self._lanes) > 1 else TURN_SECONDS

    def waiting(self) -> bool:
        """Whether anything waits in any lane."""
        return any(lane.pool for lane in self._lanes)

    def next(self, now: float, *, draining: bool) -> tuple[ModelQueue[Any] | None, float | None]:
        """Of the lanes in which something waits long enough, the one that used the runners least.

        Args:
            now: The time.
            draining: Whether nobody need wait for company any more.

        Returns:
            That lane, or None and the seconds until one will be ready, if anything waits.
        """
        waiting = [lane for lane in self._lanes if len(lane.pool)]
        if not waiting:
            return None, None
        if self._max_wait > 0 and not draining:
            patience = {lane: self._patience(lane, now) for lane in waiting}
            waiting = [lane for lane in waiting if patience[lane] <= 0]
            if not waiting:
                return None, min(patience.values())
        served = waiting[0] if len(waiting) == 1 else min(waiting, key=_USED)
        self._used_seconds = max(self._used_seconds, served.used_seconds)
        return served, None

    def backlog_seconds(self) -> float:
        """Roughly how long what waits would take one runner, by the cost of a full batch of each lane."""
        seconds = 0.0
        for lane in self._lanes:
            if lane.cost_steps:
                width = max(lane.multiple, lane.cost_steps // max(1, len(lane.pool)))
                rows = lane.limits.most_rows(width)
                seconds += lane.cost.predict(rows, width) * lane.cost_steps / (rows * width)
        return seconds

    def _patience(self, lane: ModelQueue[Any], now: float) -> float:
        """Seconds that a lane may still wait for company: no longer than its deadlines allow."""
        if len(lane.pool) >= lane.limits.rows:
            return 0.0
        oldest, hurried = lane.pool.most_urgent(), lane.pool.earliest_deadline()
        patience = oldest.arrival + self._max_wait - now if isinstance(oldest, QueuedSequence) else 0.0
        if hurried is None:
            return patience
        return min(patience, hurried.deadline - now - 2 * lane.cost.predict(1, hurried.width) - _WOKEN_LATE_SECONDS)
