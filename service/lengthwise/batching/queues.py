"""The queues of waiting sequences, one for each model, and which queue is served next.

| class | is |
|---|---|
| `ModelQueue` | one model's queue: its waiting sequences, and how a batch of them is predicted, padded and run |
| `PendingRequest` | one call that waits for the answers to all of its sequences |
| `QueuedSequence` | one of these sequences: the unit of planning |
| `ModelQueues` | all queues, and whose turn it is: models share the runners' time equally, whatever their load |

Nothing here locks; the batcher does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from lengthwise.batching.breaker import Breaker
from lengthwise.batching.buckets import Buckets
from lengthwise.batching.cost import CostTable
from lengthwise.batching.inline import InlineRule
from lengthwise.batching.pending import PendingSequences, WaitingSequence
from lengthwise.batching.plan import BatchLimits
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.telemetry.metrics import ModelMetrics

log = logging.getLogger("lengthwise.queues")

TURN_SECONDS: Final = 0.02
"""Longest predicted run of a batch with more rows than make a row cheaper, in seconds; see
`BatchLimits.turn_seconds`."""
SHARED_TURN_SECONDS: Final = 0.002
"""The same limit where several models are served: a running batch cannot be interrupted for another model, and a few
rows gain nearly all that batching can."""
_WAKE_UP_SECONDS: Final = 0.005
"""How late a busy machine may wake a runner: a wait for more requests ends this many seconds earlier than a deadline
requires."""

_USED_SECONDS: Final = attrgetter("used_seconds")

RunBatch = Callable[[PaddedBatch, bool], Sequence[Any]]
"""Runs a padded batch, with attention (true) or without. Returns one result for each row, which is opaque here."""
Finish = Callable[[list[Any], "Timing"], Any]
"""Builds a call's answer from the results of its sequences, in their order."""


class Timing(NamedTuple):
    """How long a request waited and ran, in seconds: each the longest of its sequences."""

    queue: float
    inference: float


class ModelQueue:
    """One model's queue.

    Args:
        name: For logs.
        run: Runs a padded batch.
        cost: Predicts a batch's seconds, and learns from the batches that run.
        metrics: The model's metrics.
        limits: The limits of one batch.
        multiple: Widths are multiples of it.
        buckets: The shapes of the batches that run; None if any shape may run.
        steady: Whether the time of a run follows from the shape of its batch.

    Attributes:
        pending: The waiting sequences.
        padded_steps: The padded steps of the waiting sequences.
        seconds: Their predicted seconds.
        closed_to_new: Whether new requests are refused until the queue has drained; see `Admission`.
        inflight: How many batches run.
        closed: Whether its model is no longer served.
        used_seconds: The runners' time that it was charged for; the queue with the least is served next.
        inline: Whether the event loop may run its batches.
        breaker: Whether the model works.
    """

    def __init__(
        self,
        name: str,
        run: RunBatch,
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
        self.pending = PendingSequences()
        self.padded_steps = 0
        self.seconds = 0.0
        self.closed_to_new = False
        self.inflight = 0
        self.closed = False
        self.used_seconds = 0.0
        self.inline = InlineRule(steady=steady)
        self.breaker = Breaker()

    def limits_within(self, seconds: float, turn_seconds: float) -> BatchLimits:
        """The limits, with these two times at most; cached, because only a few pairs occur."""
        limits = self._limits_within.get((seconds, turn_seconds))
        if limits is None:
            limits = replace(self.limits, seconds=min(seconds, self.limits.seconds), turn_seconds=turn_seconds)
            self._limits_within[seconds, turn_seconds] = limits
        return limits

    def width_of(self, length: int) -> int:
        """The width with which the cost of a batch is predicted if a sequence of this length is its longest.

        With buckets, it is the bucket's width. Without, it is the length itself and not the padded width: the
        recurrent kernels on a CPU end at the longest sequence, so the steps added by rounding cost almost nothing.
        """
        return length if self.buckets is None else self.buckets.width_of(length)

    def fits(self, seconds: float) -> bool:
        """Whether the next batch, with as many rows as make a row cheaper, is predicted to end within `seconds`.

        Only the two sequences from which a plan can start are looked at. At least one sequence must wait.
        """
        urgent, hurried = self.pending.most_urgent(), self.pending.earliest_deadline()
        width = 0 if urgent is None else urgent.width
        if hurried is not None and hurried.width > width:
            width = hurried.width
        try:
            column = self.cost.column(width, self.limits.rows)
            return column.seconds[min(len(self.pending), column.enough_rows)] * self.cost.drift <= seconds
        except Exception:
            self._log_cost_error()
            return False

    def predict(self, rows: int, width: int, valid_steps: int | None = None) -> float:
        """Predicted seconds of a batch; infinity where the cost table fails, which must not end a thread.

        Args:
            rows: Its rows.
            width: The width with which its cost is predicted.
            valid_steps: How many steps of all rows are valid; None if all are.
        """
        try:
            return self.cost.predict(rows, width, valid_steps)
        except Exception:
            self._log_cost_error()
            return float("inf")

    def row_seconds(self, width: int) -> float:
        """Predicted seconds of one sequence in a good batch; 0 where the cost table fails."""
        try:
            return self.cost.column(width, self.limits.rows).least_row_seconds * self.cost.drift
        except Exception:
            self._log_cost_error()
            return 0.0

    def _log_cost_error(self) -> None:
        log.exception("the cost of a batch of %s could not be predicted", self.name)

    def padded(self, sequences: Sequence[Steps]) -> PaddedBatch:
        """The batch that runs: the sequences, padded to the queue's shapes."""
        if self.buckets is None:
            return pad(sequences, multiple=self.multiple)
        width = self.buckets.width_of(max(len(steps) for steps in sequences))
        rows = self.buckets.rows_of(len(sequences), width)
        return pad(sequences, width=width, rows=rows, filler_length=self.buckets.min_length)


class Waiter(Protocol):
    """The interface of what a request completes, once, on the event loop: a part of `asyncio.Future`."""

    def done(self) -> bool:
        """Whether it is complete or cancelled."""

    def set_result(self, result: Any, /) -> None:
        """Completes it with what `finish` returned."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Completes it with an error."""


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One call that waits for the answers to all of its sequences.

    Attributes:
        queue: Its model's queue.
        future: What is completed: an `asyncio.Future` that the caller awaits, or the `Waiter` that the caller gave. A
            caller that stops waiting calls `Batcher.withdraw`.
        finish: Builds the answer from the results.
        attention: Whether to return the attention weights.
        results: The result of each sequence; None where there is none yet.
        remaining: How many results are missing.
        trace: The caller's trace, for `on_batch`; not used here.
        sequences: Its sequences, until it is settled.
        settled: Whether its outcome is decided.
        timer: Ends it at its deadline.
        queue_seconds: The longest wait of its sequences so far.
        inference_seconds: The longest run of its sequences so far.
    """

    queue: ModelQueue
    future: Any
    finish: Finish
    attention: bool
    results: list[Any]
    remaining: int
    trace: Any = None
    sequences: list[QueuedSequence] = field(default_factory=list, init=False)
    settled: bool = False
    timer: asyncio.TimerHandle | None = None
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0


@dataclass(eq=False, slots=True)
class QueuedSequence(WaitingSequence):
    """One sequence of a request, waiting or running.

    Attributes:
        steps: `[length, features]` or `[length]`.
        padded_steps: Its length rounded up to the queue's widths: what the queue's limit counts.
        seconds: Its predicted seconds in a good batch, when it was queued: what the other limit counts.
        arrival: When it was queued, on the batcher's clock.
        index: Its place in the request.
        request: The request.
    """

    steps: Steps = field(kw_only=True)
    padded_steps: int = field(kw_only=True)
    seconds: float = field(kw_only=True)
    arrival: float = field(kw_only=True)
    index: int = field(kw_only=True)
    request: PendingRequest = field(kw_only=True)


class ModelQueues:
    """The queues of all models, and whose turn it is.

    Args:
        max_wait_seconds: Longest time that a sequence waits for more requests to batch with while a runner is idle.
    """

    def __init__(self, max_wait_seconds: float = 0.0) -> None:
        self._max_wait = max_wait_seconds
        self._queues: list[ModelQueue] = []
        self._used_seconds = 0.0  # of the queue that was served last; a queue that was empty continues from there

    def __len__(self) -> int:
        """How many queues there are."""
        return len(self._queues)

    def __iter__(self) -> Iterator[ModelQueue]:
        """All queues; a closed one too while a sequence waits or runs there."""
        return iter(self._queues)

    def add(self, queue: ModelQueue) -> None:
        """Adds a queue."""
        self._queues.append(queue)

    def remove_if_done(self, queue: ModelQueue) -> None:
        """Removes a queue that is closed and has no sequence waiting or running; a late call for it adds it again."""
        if queue.closed and not queue.pending and not queue.inflight and queue in self._queues:
            self._queues.remove(queue)
            queue.pending = PendingSequences()  # breaks a cycle: its orders may hold old requests, and these the queue

    def activate(self, queue: ModelQueue) -> None:
        """Prepares a queue for a new sequence: an empty queue gets no credit for the time that it did not use."""
        if queue.closed and queue not in self._queues:
            self._queues.append(queue)
        if not queue.pending:
            queue.used_seconds = max(queue.used_seconds, self._used_seconds)

    def busy(self) -> int:
        """How many queues have waiting sequences; at least 1."""
        return sum(1 for queue in self._queues if queue.padded_steps) or 1

    def closed(self) -> ModelQueue | None:
        """One of the queues, if all of them are closed to new requests; None if one is open."""
        queue = None
        for queue in self._queues:
            if not queue.closed_to_new:
                return None
        return queue

    def turn_seconds(self) -> float:
        """The `BatchLimits.turn_seconds` for the next plan."""
        return SHARED_TURN_SECONDS if len(self._queues) > 1 else TURN_SECONDS

    def waiting(self) -> bool:
        """Whether a sequence waits in any queue."""
        return any(queue.pending for queue in self._queues)

    def next(self, now: float, *, draining: bool) -> tuple[ModelQueue | None, float | None]:
        """The queue to serve next: of those that are ready, the one with the least `used_seconds`.

        Args:
            now: The time.
            draining: Whether no queue waits for more requests any longer.

        Returns:
            The queue and None; or None and the seconds until one is ready; or None twice if no sequence waits.
        """
        waiting = [queue for queue in self._queues if len(queue.pending)]
        if not waiting:
            return None, None
        if self._max_wait > 0 and not draining:
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
