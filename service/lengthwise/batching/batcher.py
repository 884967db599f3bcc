"""Accepts requests, runs their sequences in batches, and completes each request exactly once.

```
event loop                                    runner threads, by default one for each core
──────────                                    ────────────────────────────────────────────
submit: full? draining? too late? ── wake ──> take the next batch: which model's turn, then the plan
   await request.future                       pad, run, score; make the answers that are complete
   <────────── one call for all of them ──────┘ and take the next batch, without asking the event loop
```

Sequences that arrive while a batch runs form the next one. A request is completed in one place, `_settle`, which does
nothing the second time: a deadline, a client that left, a failed batch and an answer may come in any order. Everything
that threads share is under one lock, held for decisions only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, cast

from lengthwise.batching.admission import Admission
from lengthwise.batching.device_turns import DeviceTurns, Run
from lengthwise.batching.execution import Execution, OnBatch, Outcomes, PlannedBatch
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.pending import WIDTH
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import Finish, ModelQueue, ModelQueues, PendingRequest, QueuedSequence, Waiter
from lengthwise.batching.runners import Cores, LendCores, Runners
from lengthwise.errors import DeadlineExceeded, Draining, NotReady
from lengthwise.padding import RowInput, planned_length, rounded_width

log = logging.getLogger("lengthwise.batcher")

# An idle runner gets a part of what waits if the run of this part is predicted to take at least as long: to wake the
# runner costs a third of it.
WORTH_A_RUNNER_SECONDS: Final = 0.0003


class Batcher:
    """All queues, the requests that wait in them, and the runners.

    Args:
        runners: How many batches may run at once.
        max_queue_cost_steps: The most padded steps that may wait in this process.
        max_queue_seconds: The longest time that a request may wait, by prediction.
        workers: How many processes serve together; each has `max_queue_cost_steps`.
        devices: How many GPUs run the batches; 0 on the CPU.
        max_wait_seconds: How long a batch that is not full waits for more sequences.
        one_core: Whether this process has one core: the event loop then runs short batches.
        lend_cores: Called with the number of idle cores, which the kernels may use; see `runners`.
        cores: The cores of this process, and those that it may borrow.
        on_batch: Called with each batch that ran or failed, in the thread that ran it.
        on_suspect: Called with the queue of a model whose batches failed several times in a row, in that thread too.
        clock: The clock of all deadlines, in seconds.
    """

    def __init__(
        self,
        *,
        runners: int = 1,
        max_queue_cost_steps: int = 1_000_000,
        max_queue_seconds: float = float("inf"),
        workers: int = 1,
        devices: int = 0,
        max_wait_seconds: float = 0.0,
        one_core: bool = False,
        lend_cores: LendCores | None = None,
        cores: Cores | None = None,
        on_batch: OnBatch | None = None,
        on_suspect: Callable[[ModelQueue], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._queues = ModelQueues(max_wait_seconds)
        self._lock = threading.Lock()
        self._turns = DeviceTurns(self._lock, devices, clock)
        self.admission = Admission(
            self._queues,
            self._turns,
            max_padded_steps=max_queue_cost_steps,
            max_seconds=max_queue_seconds,
            runners=runners,
            workers=workers,
        )
        self.execution = Execution(self._queues, self._lock, clock, self._turns, on_batch, on_suspect)
        self._runners = Runners(
            self, runners, inline=not max_wait_seconds, one_core=one_core, lend_cores=lend_cores, cores=cores or Cores()
        )
        self._unsettled: set[PendingRequest] = set()  # accepted requests without an answer or an error
        self.runners = runners
        self.expect = self._runners.expect
        self.draining = False  # whether it refuses new requests because the server shuts down
        self._loop: asyncio.AbstractEventLoop | None = None  # from `start` on
        self._all_settled = asyncio.Event()
        self._all_settled.set()

    @property
    def unanswered(self) -> int:
        """How many accepted requests have no answer yet."""
        return len(self._unsettled)

    @property
    def at_rest(self) -> bool:
        """Whether every runner waits for a batch."""
        return self._runners.all_idle

    def waiting_lengths(self, count: int) -> list[tuple[str, int, list[int]]]:
        """Lists the queues that are not empty: name, number of waiting sequences, and lengths of the first `count`."""
        with self._lock:
            return [
                (
                    queue.name,
                    len(queue.pending),
                    [len(cast("QueuedSequence", sequence).steps) for sequence in islice(queue.pending, count)],
                )
                for queue in self._queues
                if queue.pending
            ]

    async def start(self) -> None:
        """Starts the runners; batches are completed on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._runners.start(self._loop)

    @property
    def queues(self) -> list[ModelQueue]:
        """Every queue that is open, or closed and not empty yet."""
        with self._lock:
            return list(self._queues)

    def open(self, queue: ModelQueue) -> None:
        """Adds a model's queue."""
        with self._lock:
            self._queues.append(queue)

    def close(self, queue: ModelQueue) -> None:
        """Removes a queue as soon as it is empty.

        Its sequences are still answered, also those that were decoded before and are queued later.
        """
        with self._lock:
            queue.closed = True
            self._queues.remove_if_empty(queue)

    def submit(
        self,
        queue: ModelQueue,
        sequences: Sequence[RowInput],
        finish: Finish,
        *,
        deadline: float = float("inf"),
        priority: int = 0,
        attention: bool = False,
        waiter: Waiter | None = None,
        trace: Any = None,
    ) -> PendingRequest:
        """Accepts the validated sequences of one call.

        The request's future, or the `waiter` in its place, gets the answer; or else DeadlineExceeded, InferenceFailed
        (the runtime failed on a batch with one of the sequences), or the RequestError that `finish` raised.
        `Admission.check_size` raises TooLarge for what even an empty queue could not hold, and `Admission.check` raises
        QueueFull for what the queue cannot hold now.

        Args:
            queue: The queue of the model.
            sequences: The sequences.
            finish: Makes the answer from the results of all sequences, in their order; called in the thread that ran
                the last batch with one of them.
            deadline: On the batcher's clock.
            priority: From 0; a higher one is served earlier.
            attention: Whether the answer has attention weights.
            waiter: What is completed instead of a new future.
            trace: The trace of the call, for `on_batch`.

        Raises:
            NotReady: The batcher was not started, or the model does not work; then the error has the seconds until the
                next try.
            Draining: The server shuts down.
            DeadlineExceeded: The deadline has passed already. One that would pass before the request runs is the same
                error.
        """
        loop = self._loop
        if loop is None:
            raise NotReady("the server is starting", retry_after_seconds=1)
        # 1. The request, and a `QueuedSequence` for each of its sequences
        now, count = self._clock(), len(sequences)
        future = loop.create_future() if waiter is None else waiter
        request = PendingRequest(queue, future, finish, attention, trace, [None] * count, count)
        queued = _queued(request, sequences, deadline, priority, now)
        # 2. What is refused without the lock
        if queue.breaker.open:
            raise NotReady(
                f"the model {queue.name} does not work, and is tried again on a schedule; /healthz says why",
                retry_after_seconds=max(0.0, queue.breaker.probe_time - now),
            )
        self.admission.check_size(sum([sequence.padded_steps for sequence in queued]))
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        # 3. Admission, and a runner that is woken
        with self._lock:
            if self.draining:
                raise Draining("the server is shutting down", retry_after_seconds=1)
            self._admit(request, queued, now, deadline, priority)
        self._all_settled.clear()
        if deadline != float("inf"):
            request.timer = loop.call_later(deadline - now, self._expire, request)
        return request

    def _admit(
        self, request: PendingRequest, queued: list[QueuedSequence], now: float, deadline: float, priority: int
    ) -> None:
        """Lets the sequences of a request wait if `Admission.check` does, and wakes a runner; the lock is held."""
        queue, padded_steps = request.queue, sum([sequence.padded_steps for sequence in queued])
        seconds = sum([sequence.seconds for sequence in queued])
        self.admission.check(
            queue,
            padded_steps,
            seconds,
            widest=max(map(WIDTH, queued), default=1),
            patience=deadline - now,
            deadline=deadline,
            priority=priority,
        )
        request.sequences = queued  # a cycle, until it is settled; a refused request never has it
        self.admission.add(queue, padded_steps, seconds)
        self._unsettled.add(request)
        self._queues.activate(queue)
        for sequence in queued:
            queue.pending.add(sequence)
        self._runners.wake(queue, queued)

    def withdraw(self, request: PendingRequest, error: BaseException) -> None:
        """Settles a request whose caller no longer waits: its waiting sequences are not run, and its future fails."""
        if freed := self._settle(request, error):
            request.queue.metrics.count("cancelled_sequences", freed)

    async def drain(self, seconds: float) -> bool:
        """Refuses new requests, waits up to `seconds` for the accepted ones, fails the others, and stops the runners.

        Returns whether all accepted requests were answered in time.
        """
        end = self._clock() + seconds
        with self._lock:
            self.draining = True
            self._runners.wake_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_settled.wait()
        unanswered = list(self._unsettled)
        says = "the server stopped before the answer was there"
        self.settle_all([(request, Draining(says, retry_after_seconds=1)) for request in unanswered])
        with self._lock:
            self._runners.stop()
        await self._runners.join(lambda: end - self._clock())
        return not unanswered

    def begin_draining(self) -> None:
        """Refuses new requests from now on; `drain` then waits for the accepted ones.

        Safe in a signal handler, as it takes no lock.
        """
        self.draining = True

    def next_queue(self) -> tuple[ModelQueue | None, float | None]:
        """Removes late sequences, and returns the queue whose turn it is, or how long to wait for one.

        Sequences are late if their deadline has passed, even if the timer of their request has not fired yet. The lock
        is held.

        Returns:
            - (queue, None): this queue has the turn.
            - (None, seconds): all queues wait for more sequences; the first of them is ready in so many seconds.
            - (None, None): no sequence waits.
        """
        now = self._clock()
        for queue in self._queues:
            while isinstance(late := queue.pending.earliest_deadline(), QueuedSequence) and late.deadline <= now:
                queue.pending.remove(late)
                self.admission.remove(queue, [late])
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._expire, late.request)
        return self._queues.next(now, draining=self.draining)

    def next_cold(self) -> Callable[[], object] | None:
        """Chooses a cold shape, one that a device has not run yet, and returns a function that runs it.

        The runners call this while they rest, so that no request has to wait for the slow first run. None if no shape
        should run. The chosen shape has the highest ratio of how often its width came lately to its rows; it is removed
        from `ModelQueue.cold`. The lock is held.
        """
        for queue in () if self.draining else self._queues:
            # A copy of the shapes: `Execution.count` removes some without the lock.
            arrivals, shapes = queue.pending.widths, [*queue.cold]
            if shapes and queue.runs_at_rest and arrivals:
                shape = max(shapes, key=lambda shape: arrivals[shape[1]] / shape[0])
                warm = queue.cold.pop(shape, None) if arrivals[shape[1]] else None
                if warm is not None:
                    queue.runs_at_rest -= 1
                    return partial(self.execution.run_at_rest, queue, shape, warm)
        return None

    def take_batch(self, queue: ModelQueue, *, seconds: float = float("inf")) -> PlannedBatch:
        """Plans a queue's next batch, and removes its sequences from what waits; the lock is held.

        If sequences are left, in any queue, it also has a runner or the event loop run these.

        Args:
            queue: The queue whose turn it is.
            seconds: The longest predicted time of the batch.
        """
        work_start = queue.cost.clock()
        sequences = self._plan(queue, seconds)
        queue.inflight += 1
        work = self.admission.remove(queue, sequences)
        more_waits = any(waiting.pending for waiting in self._queues)
        # Another process may take its core back at any time, so the work on borrowed cores is not counted.
        self.admission.rate.count_batch(work * self._runners.share_of_running, self._clock(), more_waits=more_waits)
        if more_waits:
            self._runners.wake_for_remaining()
        widths = [sequence.width for sequence in sequences]
        width = max(widths, default=0)
        run = Run(queue.name, len(widths), width, queue.predict(len(widths), width), queue.metrics)
        self._turns.begin(run, queue.predict(len(widths), width, sum(widths)))
        return PlannedBatch(queue, sequences, work_start, width, sum(widths), run.seconds)

    def _plan(self, queue: ModelQueue, seconds: float) -> list[QueuedSequence]:
        """Chooses the sequences of a queue's next batch, of at most `seconds`; removes them from `queue.pending`."""
        limits = self._divided(queue, queue.limits_within(seconds, self._queues.turn_seconds(queue)))
        try:
            chosen = plan(queue.pending, queue.cost, limits, self._clock())
        except Exception:  # an error in a plan must not end the runner
            log.exception("planning failed for %s; the most urgent sequence runs unbatched", queue.name)
            chosen = list(islice(queue.pending.near(), 1))
            queue.pending.take(chosen)
        return cast("list[QueuedSequence]", chosen)  # nothing else is added to a queue

    def _divided(self, queue: ModelQueue, limits: BatchLimits) -> BatchLimits:
        """Returns limits with so few rows that this runner and the idle ones get equal parts of a queue.

        The limits are returned unchanged if there are no two sequences to divide, or a part would be too short to wake
        a runner for it; if padding costs as much as valid steps, as batches by length are small; or if sequences wait
        for `max_wait_seconds`, because what has waited together runs together.
        """
        helpers, waiting = self._runners.count_helpers(), len(queue.pending)
        if not helpers or waiting < 2 or self._queues.waits or queue.cost.padding_cost == 1:
            return limits
        rows, mean_width = -(-waiting // (1 + helpers)), queue.padded_steps // waiting
        return limits.at_most(rows) if queue.predict(rows, mean_width) >= WORTH_A_RUNNER_SECONDS else limits

    def settle_all(self, outcomes: Outcomes) -> None:
        """Gives requests their outcomes, on the event loop; a request past its deadline gets an error in any case."""
        now = self._clock()
        for request, outcome in outcomes:
            try:
                if request.sequences and request.sequences[0].deadline <= now:
                    self._expire(request)
                else:
                    self._settle(request, outcome)
            except Exception:  # one caller's broken connection must not lose the other answers
                log.exception("an answer could not be given to its caller")

    def _expire(self, request: PendingRequest) -> None:
        """Fails a request whose deadline has passed, unless it is settled; on the event loop."""
        self._settle(request, DeadlineExceeded("the deadline passed before the answer was there"))

    def _settle(self, request: PendingRequest, outcome: Any) -> int:
        """Gives a request its outcome, an answer or an error, unless it has one already; on the event loop.

        Removes those of its sequences that still wait, and returns how many these are.
        """
        if request.settled:
            return 0
        request.settled = True
        if request.timer is not None:
            request.timer.cancel()
        queue, sequences = request.queue, request.sequences
        request.sequences = []  # breaks the cycle, so that both are freed at once
        removed: list[QueuedSequence] = []
        with self._lock:
            self._unsettled.discard(request)
            if request.remaining:  # some sequences may still wait
                removed = [sequence for sequence in sequences if queue.pending.remove(sequence)]
                self.admission.remove(queue, removed)
                self._queues.remove_if_empty(queue)
            all_settled = not self._unsettled
        if all_settled:
            self._all_settled.set()
        if not request.future.done():
            if isinstance(outcome, BaseException):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)
        return len(removed)


def _queued(
    request: PendingRequest, sequences: Sequence[RowInput], deadline: float, priority: int, arrival: float
) -> list[QueuedSequence]:
    """The sequences of a request, with their widths and their predicted work."""
    queue = request.queue
    widths = [queue.width_of(planned_length(steps)) for steps in sequences]
    return [
        QueuedSequence(
            width,
            deadline,
            priority,
            steps=steps,
            padded_steps=rounded_width(width, queue.limits.multiple),
            seconds=queue.row_seconds(width),
            arrival=arrival,
            index=index,
            request=request,
        )
        for index, (steps, width) in enumerate(zip(sequences, widths, strict=True))
    ]
