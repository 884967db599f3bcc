"""The queues of waiting sequences, one for each model, which share the runners' time equally. The batcher locks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from lengthwise.batching.breaker import Breaker
from lengthwise.batching.buckets import BEFORE_READY, MOST_FIRST, BatchShape, Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.telemetry.metrics import ModelMetrics

log = logging.getLogger("lengthwise.queues")

TURN_SECONDS: Final = 0.02  # see `BatchLimits.turn_seconds`
# In order of arrival: what waits is served in the same order however it is cut, and each cut lengthens the tail.
ARRIVAL_TURN_SECONDS: Final = 0.1
SHARED_TURN_SECONDS: Final = 0.002  # with several models: no run is interrupted for another
_WAKE_UP_SECONDS: Final = 0.005  # how late a busy machine may wake a runner: a wait for more ends earlier
FIRST_RUNS: Final = 4  # how many batches of a new model are run by runners before the event loop may run one
_COOLDOWN_FACTOR: Final = 100  # over the slow run: a model blocks the event loop for at most 1 % of the time
_MAX_COOLDOWN_SECONDS: Final = 3600.0
_RESET_FACTOR: Final = 10  # cooldowns double, until so many times the last one passed without a slow run

_USED_SECONDS: Final = attrgetter("used_seconds")

RunBatch = Callable[[PaddedBatch, bool], Sequence[Any]]  # with attention (true) or without: a result a row
Finish = Callable[[list[Any], "Timing"], Any]  # builds a call's answer from its sequences' results, in order


class Timing(NamedTuple):
    """How long a request waited and ran, in seconds: each the longest of its sequences."""

    queue: float
    inference: float


@dataclass(slots=True)
class InlineRule:
    """Whether the event loop may run a model's batches itself ("inline"), as far as that depends on the model.

    Such a run blocks the loop, so it must be reliably short: its time follows from the shape of its batch (`steady`),
    runners have run `FIRST_RUNS` (costs are measured at load with zeros), and no cooldown lasts, after a run much
    slower than predicted: `possible`, unless `cooldown_end` (on the batcher's clock) is still to come.
    """

    steady: bool
    first_runs: int = FIRST_RUNS
    possible: bool = False
    cooldown_seconds: float = 0.0
    cooldown_end: float = 0.0

    def count_run(self) -> None:
        """Counts one of the first batches that a runner ran."""
        self.first_runs -= 1
        self.possible = self.steady and not self.first_runs

    def start_cooldown(self, run_seconds: float, now: float) -> None:
        """Keeps the model off the event loop from `now` (seconds) on, because a run was slow, here or in a runner."""
        since_end = now - self.cooldown_end
        shortest = 0.0 if since_end >= _RESET_FACTOR * self.cooldown_seconds else self.cooldown_seconds
        if since_end >= 0:  # a slow run within a cooldown, which is in a runner, does not double it
            shortest *= 2
        self.cooldown_seconds = min(max(_COOLDOWN_FACTOR * run_seconds, shortest), _MAX_COOLDOWN_SECONDS)
        self.cooldown_end = now + self.cooldown_seconds


@dataclass(eq=False)
class ModelQueue:
    """One model's queue."""

    name: str
    run: RunBatch
    cost: CostTable
    metrics: ModelMetrics
    limits: BatchLimits
    multiple: InitVar[int] = 4
    buckets: Buckets | None = None  # the shapes of its batches; None for any
    steady: InitVar[bool] = True  # see `InlineRule`
    cold: dict[BatchShape, Callable[[], object]] = field(default_factory=dict)  # shapes of a device that did not run
    runs_at_rest: int = MOST_FIRST - BEFORE_READY  # how many of these may still run without a batch that needs them
    pending: PendingSequences = field(init=False, default_factory=PendingSequences)
    padded_steps: int = 0  # of the waiting sequences
    seconds: float = 0.0  # predicted, of the waiting sequences
    closed_to_new: bool = False  # until it has drained; see `Admission`
    inflight: int = 0  # batches that run
    closed: bool = False  # its model is no longer served
    used_seconds: float = 0.0  # charged so far; the queue with the least is served next
    breaker: Breaker = field(init=False, default_factory=Breaker)
    inline: InlineRule = field(init=False)
    _limits_within: dict[tuple[float, float], BatchLimits] = field(init=False, default_factory=dict)

    def __post_init__(self, multiple: int, steady: bool) -> None:
        self.limits = replace(self.limits, multiple=multiple)
        self.inline = InlineRule(steady)

    def limits_within(self, seconds: float, turn_seconds: float) -> BatchLimits:
        """The limits, with these two times at most; cached, because only a few pairs occur."""
        limits = self._limits_within.get((seconds, turn_seconds))
        if limits is None:
            limits = replace(self.limits, seconds=min(seconds, self.limits.seconds), turn_seconds=turn_seconds)
            self._limits_within[seconds, turn_seconds] = limits
        return limits

    def width_of(self, length: int) -> int:
        """The width with which the cost of a batch is predicted if a sequence of this length is its longest.

        Without buckets it is the length itself: recurrent kernels on a CPU end at the longest sequence, so the steps
        added by rounding cost almost nothing.
        """
        return length if self.buckets is None else self.buckets.width_of(length)

    def width_of_arrival(self, length: int) -> int:
        """Counts a sequence that arrived, as buckets learn which widths come often; returns its `width_of`."""
        return length if self.buckets is None else self.buckets.width_of_arrival(length)

    def fits(self, seconds: float) -> bool:
        """Whether the next batch, with as many rows as make one cheaper, is predicted to end within `seconds`.

        In order of arrival it has as many as may wait: theirs are the predicted seconds.
        """
        urgent, hurried = self.pending.most_urgent(), self.pending.earliest_deadline()
        width = 0 if urgent is None else urgent.width
        if hurried is not None and hurried.width > width:
            width = hurried.width
        try:
            column = self.cost.column(width, self.limits.rows)
        except Exception:
            return self._log_failed_prediction() <= seconds
        if self.cost.valid_steps_only:
            batch = self.seconds * min(1.0, self.limits.rows / max(1, len(self.pending)))
            return max(batch, column.seconds[1] * self.cost.drift) <= seconds
        return column.seconds[min(len(self.pending), column.enough_rows)] * self.cost.drift <= seconds

    def predict(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of a batch; infinity where the cost table fails, which must not end a thread."""
        try:
            return self.cost.seconds_of(rows, width, valid_steps) * self.cost.drift
        except Exception:
            return self._log_failed_prediction()

    def row_seconds(self, width: int) -> float:
        """Predicted seconds of one sequence in a good batch; 0 where the cost table fails."""
        try:
            return self.cost.column(width, self.limits.rows).least_row_seconds * self.cost.drift
        except Exception:
            self._log_failed_prediction()
            return 0.0

    def _log_failed_prediction(self) -> float:
        log.exception("the cost of a batch of %s could not be predicted", self.name)
        return float("inf")

    def padded(self, sequences: Sequence[Steps]) -> PaddedBatch:
        """The batch that runs: the sequences, padded to the queue's shapes."""
        if self.buckets is None:
            return pad(sequences, multiple=self.limits.multiple)
        width = self.buckets.width_of(max(len(steps) for steps in sequences))
        rows = self.buckets.rows_of(len(sequences), width)
        return pad(sequences, width=width, rows=rows, filler_length=self.buckets.min_length)


class Waiter(Protocol):
    """The interface of what a request completes, once, on the event loop: a part of `asyncio.Future`."""

    def done(self) -> bool:
        """Whether the waiter is complete or cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Completes the waiter with what `finish` returned."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Completes the waiter with an error."""


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One call that waits for the answers to all of its sequences."""

    queue: ModelQueue
    future: Any  # or the `Waiter` that the caller gave
    finish: Finish
    attention: bool
    trace: Any  # for `on_batch`
    results: list[Any]  # None where there is none yet
    remaining: int  # results that are missing
    sequences: list[QueuedSequence] = field(default_factory=list, init=False)  # until it is settled
    settled: bool = False
    timer: asyncio.TimerHandle | None = None  # ends it at its deadline
    queue_seconds: float = 0.0  # the longest wait of its sequences so far
    inference_seconds: float = 0.0  # the longest run


@dataclass(eq=False, slots=True)
class QueuedSequence(WaitingSequence):
    """One sequence of a request, waiting or running."""

    steps: Steps = field(kw_only=True)  # `[length, features]` or `[length]`
    padded_steps: int = field(kw_only=True)  # its rounded width: what the queue's limit counts
    seconds: float = field(kw_only=True)  # in a good batch, when queued: what the other limit counts
    arrival: float = field(kw_only=True)  # on the batcher's clock
    index: int = field(kw_only=True)  # in the request
    request: PendingRequest = field(kw_only=True)


class ModelQueues(list[ModelQueue]):
    """The queues of all models, and whose turn it is; a closed one too while a sequence waits or runs there.

    While a runner is idle, sequences wait `max_wait_seconds` for others.
    """

    def __init__(self, max_wait_seconds: float = 0.0) -> None:
        super().__init__()
        self._max_wait = max_wait_seconds
        self.waits = max_wait_seconds > 0  # whether a batch that is not full waits for more requests
        self._used_seconds = 0.0  # of the queue that was served last; a queue that was empty continues from there

    def remove_if_empty(self, queue: ModelQueue) -> None:
        """Removes a queue that is closed and has no sequence waiting or running; a late call for it adds it again."""
        if queue.closed and not queue.pending and not queue.inflight and queue in self:
            self.remove(queue)
            queue.pending = PendingSequences()  # breaks a cycle: its orders may hold old requests, and these the queue

    def activate(self, queue: ModelQueue) -> None:
        """Prepares a queue for a new sequence: an empty queue gets no credit for the time that it did not use."""
        if queue.closed and queue not in self:
            self.append(queue)
        if not queue.pending:
            queue.used_seconds = max(queue.used_seconds, self._used_seconds)

    def busy(self) -> int:
        """How many queues have waiting sequences; at least 1."""
        return sum(1 for queue in self if queue.padded_steps) or 1

    def turn_seconds(self, queue: ModelQueue) -> float:
        """The `BatchLimits.turn_seconds` for the next plan of a queue."""
        if len(self) > 1:
            return SHARED_TURN_SECONDS
        return ARRIVAL_TURN_SECONDS if queue.cost.valid_steps_only else TURN_SECONDS

    def next(self, now: float, *, draining: bool) -> tuple[ModelQueue | None, float | None]:
        """The ready queue with the least `used_seconds`, and None; or None and the seconds until one is, if any."""
        waiting = [queue for queue in self if len(queue.pending)]
        if not waiting:
            return None, None
        if self.waits and not draining:
            waits = {queue: self._seconds_to_wait(queue, now) for queue in waiting}
            waiting = [queue for queue in waiting if waits[queue] <= 0]
            if not waiting:
                return None, min(waits.values())
        served = waiting[0] if len(waiting) == 1 else min(waiting, key=_USED_SECONDS)
        self._used_seconds = max(self._used_seconds, served.used_seconds)
        return served, None

    def _seconds_to_wait(self, queue: ModelQueue, now: float) -> float:
        """How long a queue may still wait for more requests, as far as its earliest deadline allows."""
        pending = queue.pending
        if len(pending) >= queue.limits.rows:
            return 0.0
        oldest, hurried = pending.most_urgent(), pending.earliest_deadline()
        seconds = oldest.arrival + self._max_wait - now if isinstance(oldest, QueuedSequence) else 0.0
        if hurried is None:
            return seconds
        return min(seconds, hurried.deadline - now - 2 * queue.predict(1, hurried.width) - _WAKE_UP_SECONDS)
