"""The queues of waiting sequences, one for each model, which share the runners' time equally.

Nothing here locks: the batcher calls it with its lock held. A *turn* of a model is one batch of its queue; the queue
that has been charged with the least run time has the next one. `Execution` charges what runs took: what was predicted
may be wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from lengthwise.batching.breaker import Breaker
from lengthwise.batching.buckets import BEFORE_READY, MOST_FIRST, BatchShape, Buckets, padded
from lengthwise.batching.cost import CostTable
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.padding import PaddedBatch, RowInput, Sample
from lengthwise.telemetry.metrics import ModelMetrics

log = logging.getLogger("lengthwise.queues")

TURN_SECONDS: Final = 0.02  # see `BatchLimits.turn_seconds`
# Where padding is skipped: what waits is served in the same order however it is cut, and each cut lengthens the tail.
ARRIVAL_TURN_SECONDS: Final = 0.1
MOST_SKIPPED: Final = 4  # times the padded steps of a batch where padding is skipped: its input array holds them still
SHARED_TURN_SECONDS: Final = 0.002  # with several models: no run is interrupted for another
_WAKE_UP_SECONDS: Final = 0.005  # how late a busy machine may wake a runner: a wait for more requests ends earlier
FIRST_RUNS: Final = 4  # how many batches of a new model are run by runners before the event loop may run one
_COOLDOWN_FACTOR: Final = 100  # times the slow run: a model blocks the event loop for at most 1 % of the time
_MAX_COOLDOWN_SECONDS: Final = 3600.0
_RESET_FACTOR: Final = 10  # cooldowns double, until so many times the last one has passed without a slow run

_USED_SECONDS: Final = attrgetter("used_seconds")

RunBatch = Callable[[PaddedBatch, bool], Sequence[Any]]  # the bool: with attention weights; returns a result a row
Finish = Callable[[list[Any], "Timing"], Any]  # builds a call's answer from the results of its sequences, in order


class Timing(NamedTuple):
    """How long a request waited and ran, in seconds: each the longest of its sequences."""

    queue: float
    inference: float


@dataclass(slots=True)
class InlineRule:
    """Whether the event loop may run a model's batches itself ("inline"), as far as that depends on the model.

    Such a run blocks the loop, so it must be reliably short. All of these must hold:

    - its time follows from the shape of its batch: `steady`;
    - runners have run `FIRST_RUNS` batches, as the costs at load are measured with zeros only: `possible`;
    - no cooldown lasts, which begins after a run that was much slower than predicted: `cooldown_end`.
    """

    steady: bool
    first_runs: int = FIRST_RUNS  # that are still to come
    possible: bool = False  # the first two conditions hold
    cooldown_seconds: float = 0.0  # of the last cooldown
    cooldown_end: float = 0.0  # on the batcher's clock

    def count_run(self) -> None:
        """Counts one of the first batches that a runner ran."""
        self.first_runs -= 1
        self.possible = self.steady and not self.first_runs

    def start_cooldown(self, run_seconds: float, now: float) -> None:
        """Keeps the model off the event loop from `now` on, as a run took `run_seconds`, in the loop or a runner.

        A slow run soon after a cooldown starts one that is twice as long.
        """
        since_end = now - self.cooldown_end
        shortest = 0.0 if since_end >= _RESET_FACTOR * self.cooldown_seconds else self.cooldown_seconds
        if since_end >= 0:  # within a cooldown it is a runner that is slow: that does not double it
            shortest *= 2
        self.cooldown_seconds = min(max(_COOLDOWN_FACTOR * run_seconds, shortest), _MAX_COOLDOWN_SECONDS)
        self.cooldown_end = now + self.cooldown_seconds


@dataclass(eq=False)
class ModelQueue:
    """One model's queue: what waits, how the model is run, and what its runs cost.

    `InitVar` fields: `multiple` is that of the widths in `limits`; `steady`: see `InlineRule`.
    """

    name: str
    run: RunBatch
    cost: CostTable
    metrics: ModelMetrics
    limits: BatchLimits
    multiple: InitVar[int] = 4
    buckets: Buckets | None = None  # the shapes of its batches; None for any
    steady: InitVar[bool] = True
    blank: Sample | None = None  # as `Manifest.blank`
    # The shapes of a device that have not run yet, each with a function that runs it
    cold: dict[BatchShape, Callable[[], object]] = field(default_factory=dict)
    runs_at_rest: int = MOST_FIRST - BEFORE_READY  # how many of these may still run without a batch that needs them
    pending: PendingSequences = field(init=False, default_factory=PendingSequences)
    padded_steps: int = 0  # of the waiting sequences
    seconds: float = 0.0  # of work, predicted, of the waiting sequences
    closed_to_new: bool = False  # it refuses requests until it has drained; see `Admission`
    inflight: int = 0  # batches that run
    closed: bool = False  # its model is no longer served
    used_seconds: float = 0.0  # of runs, charged so far; the queue with the least is served next
    recent_seconds: float = 0.0  # of about the last ten runs together: most that one run is charged
    breaker: Breaker = field(init=False, default_factory=Breaker)
    inline: InlineRule = field(init=False)

    def __post_init__(self, multiple: int, steady: bool) -> None:
        self.limits = replace(self.limits, multiple=multiple)
        self.inline = InlineRule(steady)

    def limits_within(self, seconds: float, turn_seconds: float) -> BatchLimits:
        """The queue's limits with at most these `seconds`, and these `turn_seconds` (see `BatchLimits`).

        Without limits of the operator, a batch may have more padded steps where padding is skipped: a single long
        sequence would cut it, and what is cut off waits for one batch more.
        """
        may_be_more = self.limits.by_table and self.buckets is None
        more = 1 / max(self.cost.padding_cost, 1 / MOST_SKIPPED) if may_be_more else 1
        return replace(
            self.limits,
            seconds=min(seconds, self.limits.seconds),
            turn_seconds=turn_seconds,
            padded_steps=int(self.limits.padded_steps * more),
        )

    def width_of(self, length: int) -> int:
        """The width by which plans predict the cost of a sequence that arrived; buckets count it (`Buckets.width_of`).

        Without buckets it is the length itself: recurrent kernels on a CPU end at the longest sequence, so the steps
        added by rounding cost almost nothing.
        """
        return length if self.buckets is None else self.buckets.width_of(length)

    def fits(self, seconds: float) -> bool:
        """Whether the next batch is predicted to end within `seconds`, without planning it.

        Where padding costs as much as valid steps, the batch is assumed to have `Column.enough_rows` rows of the
        anchor's width; where it is skipped, as many of the waiting sequences as the limits allow, at their mean cost;
        in between, it is assumed to take as long as between the two.
        """
        anchors = (self.pending.most_urgent(), self.pending.earliest_deadline())  # that of the plan is one of these
        width = max([anchor.width for anchor in anchors if anchor is not None], default=0)
        try:
            column = self.cost.column(width, self.limits.rows)
        except Exception:  # as in `predict`
            return self._log_failed_prediction() <= seconds
        waiting, drift, padding_cost = len(self.pending), self.cost.drift, self.cost.padding_cost
        by_length = column.seconds[min(waiting, column.enough_rows)] * drift
        in_order = max(self.seconds * min(1.0, self.limits.rows / max(1, waiting)), column.seconds[1] * drift)
        return padding_cost * by_length + (1 - padding_cost) * in_order <= seconds

    def predict(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of a batch; infinity where the cost table fails, which must not end a thread."""
        try:
            return self.cost.seconds_of(rows, width, valid_steps) * self.cost.drift
        except Exception:
            return self._log_failed_prediction()

    def row_seconds(self, width: int) -> float:
        """Predicted seconds of one sequence in a batch of the cheapest size; 0 where the cost table fails."""
        try:
            return self.cost.column(width, self.limits.rows).least_row_seconds * self.cost.drift
        except Exception:
            self._log_failed_prediction()
            return 0.0

    def _log_failed_prediction(self) -> float:
        """Logs the exception that is handled; returns infinity, the prediction in its place."""
        log.exception("the cost of a batch of %s could not be predicted", self.name)
        return float("inf")

    def padded(self, sequences: Sequence[RowInput]) -> PaddedBatch:
        """The batch that runs: the sequences, padded to a width of the queue, and with fillers if it has buckets."""
        return padded(sequences, self.buckets, self.limits.multiple, self.blank)


class Waiter(Protocol):
    """What a request completes, once, on the event loop: anything with these methods of `asyncio.Future`."""

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
    attention: bool  # whether its answer has attention weights
    trace: Any  # of the call; `on_batch` reads it
    results: list[Any]  # of its sequences, in order; None where there is none yet
    remaining: int  # results that are missing
    sequences: list[QueuedSequence] = field(default_factory=list, init=False)  # emptied when it is settled
    settled: bool = False  # whether it has an answer or an error
    timer: asyncio.TimerHandle | None = None  # settles it at its deadline
    queue_seconds: float = 0.0  # the longest wait of its sequences so far
    inference_seconds: float = 0.0  # the longest run of a batch with one of its sequences


@dataclass(eq=False, slots=True)
class QueuedSequence(WaitingSequence):
    """One sequence of a request, waiting or running."""

    steps: RowInput = field(kw_only=True)  # `[length, features]` or `[length]`, with what stands beside them
    padded_steps: int = field(kw_only=True)  # its rounded width: the queue's limit of steps counts it
    arrival: float = field(kw_only=True)  # on the batcher's clock
    index: int = field(kw_only=True)  # in the request's results
    request: PendingRequest = field(kw_only=True)


class ModelQueues(list[ModelQueue]):
    """The queues of all models, and whose turn it is; a closed queue stays while a sequence waits or runs there.

    While a runner is idle, a batch that is not full waits up to `max_wait_seconds` for more sequences.
    """

    def __init__(self, max_wait_seconds: float = 0.0) -> None:
        super().__init__()
        self._max_wait = max_wait_seconds
        self.waits = max_wait_seconds > 0  # whether a batch that is not full waits for more requests
        self._used_seconds = 0.0  # the most of a queue when it was served: a queue that was empty continues from there

    def remove_if_empty(self, queue: ModelQueue) -> None:
        """Removes a queue that is closed and has no sequence waiting or running.

        A sequence that is queued later, as it was decoded before, adds the queue again: `activate`.
        """
        if queue.closed and not queue.pending and not queue.inflight and queue in self:
            self.remove(queue)
            queue.pending = PendingSequences()  # breaks a cycle: its orders may hold old requests, and these the queue

    def activate(self, queue: ModelQueue) -> None:
        """Prepares a queue for a new sequence: adds it if it was removed.

        A queue that was empty gets no credit for the time that it did not use.
        """
        if queue.closed and queue not in self:
            self.append(queue)
        if not queue.pending:
            queue.used_seconds = max(queue.used_seconds, self._used_seconds)

    def busy(self) -> int:
        """How many queues have waiting sequences; at least 1."""
        return sum(1 for queue in self if queue.padded_steps) or 1

    def turn_seconds(self, queue: ModelQueue) -> float:
        """The `BatchLimits.turn_seconds` for the next plan of a queue."""
        own_seconds = TURN_SECONDS / max(queue.cost.padding_cost, TURN_SECONDS / ARRIVAL_TURN_SECONDS)
        return SHARED_TURN_SECONDS if len(self) > 1 else own_seconds

    def next(self, now: float, *, draining: bool) -> tuple[ModelQueue | None, float | None]:
        """The queue whose turn it is, and the seconds to wait for it.

        - (queue, None): the one with the least `used_seconds` of those that are ready.
        - (None, seconds): all that have sequences wait for more of them; the first is ready in so many seconds.
        - (None, None): no sequence waits.
        """
        ready = [queue for queue in self if len(queue.pending)]
        if not ready:
            return None, None
        if self.waits and not draining:
            waits = {queue: self._seconds_to_wait(queue, now) for queue in ready}
            ready = [queue for queue in ready if waits[queue] <= 0]
            if not ready:
                return None, min(waits.values())
        next_queue = ready[0] if len(ready) == 1 else min(ready, key=_USED_SECONDS)
        self._used_seconds = max(self._used_seconds, next_queue.used_seconds)
        return next_queue, None

    def _seconds_to_wait(self, queue: ModelQueue, now: float) -> float:
        """Seconds that a queue may still wait for more requests; 0 or below if its batch should run now.

        It waits until its most urgent sequence has waited `max_wait_seconds`, but not so long that the earliest
        deadline is missed, and not at all if a full batch waits.
        """
        pending = queue.pending
        if len(pending) >= queue.limits.rows:
            return 0.0
        most_urgent, earliest = pending.most_urgent(), pending.earliest_deadline()
        seconds = most_urgent.arrival + self._max_wait - now if isinstance(most_urgent, QueuedSequence) else 0.0
        if earliest is None:
            return seconds
        return min(seconds, earliest.deadline - now - 2 * queue.predict(1, earliest.width) - _WAKE_UP_SECONDS)
