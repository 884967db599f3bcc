"""Admits sequences, lets them wait, runs them in company, and gives each its answer: exactly once.

```
event loop                                    runner threads, one for each core
──────────                                    ──────────────────────────────────
submit: full? draining? too late? ── wake ──> take the next batch: fair share of models, then plan
   await the ticket's future                  pad, run, score; finish the tickets that are complete
   <────────────── one call for all of them ──┘ and take the next, without asking the loop
```

A runner (`batching.runners`) takes its next batch by itself, so between two batches nothing waits for the event loop;
the next batch gathers while one runs, and a lone request on an idle server never waits for company (unless
`max_wait_ms` says so).

Who waits is a `PendingRequest`, what is computed a `QueuedSequence` (`batching.queues`). A ticket is settled in one
place, `_settle`, which does nothing when it is settled already; so a deadline, a client that left, a failed batch and a
good answer may come in any order. Everything shared between the threads is under one lock, which is held for deciding,
never for computing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from lengthwise.batching.execution import Execution, OnBatch, Outcomes, Taken
from lengthwise.batching.plan import plan
from lengthwise.batching.queues import ModelQueue, ModelQueues, PendingRequest, QueuedSequence, Timing, Waiter
from lengthwise.batching.runners import Runners
from lengthwise.errors import DeadlineExceeded, Draining, NotReady, QueueFull, TooLarge
from lengthwise.padding import Steps, rounded_width

log = logging.getLogger("lengthwise.batcher")

R = TypeVar("R")


class Batcher:
    """All lanes, who waits in them, and who runs what waits.

    Args:
        runners: Number of threads.
        max_queue_cost_steps: Most padded steps that may wait, over all lanes.
        max_wait_seconds: Longest that a sequence waits for company while a runner is idle.
        one_core: Whether the event loop and the only runner share one core.
        on_batch: Told of each batch that ran or failed; runs in a runner thread.
        clock: Seconds; the clock of all deadlines.
    """

    def __init__(
        self,
        *,
        runners: int = 1,
        max_queue_cost_steps: int = 1_000_000,
        max_wait_seconds: float = 0.0,
        one_core: bool = False,
        on_batch: OnBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_queue = max_queue_cost_steps
        self._clock = clock
        self._lanes = ModelQueues(max_wait_seconds)
        self._lock = threading.Lock()
        self._execution = Execution(self._lanes, self._lock, clock, on_batch)
        self._runners = Runners(
            self, self._execution, self._lock, runners, clock, one_core=one_core, patient=max_wait_seconds > 0
        )
        self._queued = 0
        self._unsettled: set[PendingRequest[Any]] = set()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quiet = asyncio.Event()  # set while nothing accepted is unanswered
        self._quiet.set()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self._draining

    @property
    def unanswered(self) -> int:
        """How many accepted calls have no answer yet."""
        return len(self._unsettled)

    @property
    def at_rest(self) -> bool:
        """Whether every runner waits for a batch."""
        return self._runners.all_idle

    async def start(self) -> None:
        """Starts the runners on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._runners.start(self._loop)

    @property
    def lanes(self) -> list[ModelQueue[Any]]:
        """Every lane that is open, or closed and not empty yet."""
        with self._lock:
            return list(self._lanes)

    def open(self, lane: ModelQueue[Any]) -> None:
        """Adds a model's lane."""
        with self._lock:
            self._lanes.open(lane)

    def close(self, lane: ModelQueue[Any]) -> None:
        """Forgets a lane when it is empty.

        What waits in it is still answered, and so is a call that was read for its model before this and comes after.
        """
        with self._lock:
            lane.closed = True
            self._lanes.forget_if_done(lane)

    def submit(
        self,
        lane: ModelQueue[R],
        sequences: Sequence[Steps],
        finish: Callable[[list[R], Timing], Any],
        *,
        deadline: float = float("inf"),
        priority: int = 0,
        attention: bool = False,
        waiter: Waiter | None = None,
        trace: Any = None,
    ) -> PendingRequest[R]:
        """Accepts some sequences of one caller, who then awaits the ticket's future: what `finish` made, or an error.

        The future's errors: `DeadlineExceeded` when the deadline passed, waiting or running; `InferenceFailed` when the
        runtime failed on a batch with one of the sequences in it; whatever `RequestError` `finish` raised.

        Args:
            lane: The model's.
            sequences: Each `[length, features]` or `[length]`, already valid.
            finish: Makes the caller's answer of all results, in order; runs in a runner thread.
            deadline: When the answer is worthless, on the batcher's clock.
            priority: 0 to 9, higher first.
            attention: Whether the attention is wanted.
            waiter: Completed in the place of a future, which then need not be made.
            trace: The caller's, for `on_batch`.

        Raises:
            Draining: It takes nothing new.
            TooLarge: An idle server could not queue it.
            QueueFull: This one cannot now; comes with the seconds after which it probably can.
            DeadlineExceeded: The deadline has passed already.
        """
        loop = self._loop
        if loop is None:
            raise NotReady("the server is starting", retry_after_seconds=1)
        now = self._clock()
        count = len(sequences)
        ticket: PendingRequest[R] = PendingRequest(
            lane,
            loop.create_future() if waiter is None else waiter,
            finish,
            attention,
            [None] * count,
            count,
            trace=trace,
        )
        entries: list[QueuedSequence[R]] = []
        cost = 0
        for index, steps in enumerate(sequences):
            width = lane.width_of(len(steps))
            padded = rounded_width(width, lane.multiple)
            entries.append(
                QueuedSequence(
                    width, deadline, priority, steps=steps, cost=padded, arrival=now, index=index, ticket=ticket
                )
            )
            cost += padded
        if cost > self._max_queue:
            raise TooLarge(f"{cost} padded steps; the queue holds {self._max_queue} in all")
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        with self._lock:
            if self._draining:
                raise Draining("the server is shutting down", retry_after_seconds=1)
            if self._queued + cost > self._max_queue and self._lanes.beyond_share(lane, cost, self._max_queue):
                raise QueueFull(
                    "the queue is full", retry_after_seconds=self._lanes.backlog_seconds() / self._runners.count
                )
            ticket.entries = entries  # they point at it, too: until it is settled, which a refused one never is
            self._queued += cost
            lane.cost_steps += cost
            self._unsettled.add(ticket)
            self._lanes.wake(lane)
            for entry in entries:
                lane.pool.add(entry)
            self._runners.wake(lane, entries)
        self._quiet.clear()
        if deadline != float("inf"):
            ticket.timer = loop.call_later(deadline - now, self._expire, ticket)
        return ticket

    def withdraw(self, ticket: PendingRequest[Any], error: BaseException) -> None:
        """Settles a ticket whose caller no longer waits: what has not begun of it is not run, and its future fails."""
        self._settle(ticket, error)

    async def drain(self, seconds: float) -> bool:
        """Takes nothing new, finishes what was accepted, and stops the runners.

        Args:
            seconds: How long to wait for it.

        Returns:
            Whether everything accepted was answered in that time; what was not is refused.
        """
        until = self._clock() + seconds
        with self._lock:
            self._draining = True
            self._runners.wake_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        late = list(self._unsettled)
        for ticket in late:
            self._settle(ticket, Draining("the server stopped before the answer was there", retry_after_seconds=1))
        with self._lock:
            self._runners.stop()
        await self._runners.join(lambda: until - self._clock())
        return not late

    def begin_draining(self) -> None:
        """Takes nothing new from now on; `drain` waits for the rest. Safe in a signal handler: takes no lock."""
        self._draining = True

    def next_lane(self) -> tuple[ModelQueue[Any] | None, float | None]:
        """See `Queue`, and `ModelQueues.next`. What is late leaves its queue, though its timer may not have fired."""
        now = self._clock()
        for lane in self._lanes:
            while isinstance(late := lane.pool.earliest_deadline(), QueuedSequence) and late.deadline <= now:
                lane.pool.remove(late)
                self._leave(lane, [late])
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._expire, late.ticket)
        return self._lanes.next(now, draining=self._draining)

    def take(self, lane: ModelQueue[Any], *, seconds: float = float("inf")) -> Taken:
        """See `Queue`. Wakes another if anything still waits."""
        began = lane.cost.clock()
        entries = self._plan(lane, seconds)
        lane.inflight += 1
        self._leave(lane, entries)
        if self._lanes.waiting():
            self._runners.wake_another()
        return Taken(lane, entries, began)

    def _plan(self, lane: ModelQueue[Any], seconds: float) -> list[Any]:
        try:
            return plan(lane.pool, lane.cost, lane.limits_within(seconds, self._lanes.turn_seconds()), self._clock())
        except Exception:  # whatever is wrong with a plan must not end the runner
            log.exception("planning failed for %s; the most urgent sequence runs alone", lane.name)
            urgent = lane.pool.most_urgent()
            if urgent is None:
                return []
            lane.pool.remove(urgent)
            return [urgent]

    def settle_all(self, outcomes: Outcomes) -> None:
        """See `Queue`; what is late has none, though its timer has not fired yet."""
        now = self._clock()
        for ticket, outcome in outcomes:
            try:
                if ticket.entries and ticket.entries[0].deadline <= now:
                    self._expire(ticket)
                else:
                    self._settle(ticket, outcome)
            except Exception:  # one caller's broken connection must not cost the others their answers
                log.exception("an answer could not be given to its caller")

    def _expire(self, ticket: PendingRequest[Any]) -> None:
        self._settle(ticket, DeadlineExceeded("the deadline passed before the answer was there"))

    def _settle(self, ticket: PendingRequest[Any], outcome: Any) -> None:
        """Gives a ticket its outcome, on the event loop; a no-op where it has one already."""
        if ticket.settled:
            return
        ticket.settled = True
        if ticket.timer is not None:
            ticket.timer.cancel()
        lane, entries = ticket.lane, ticket.entries
        ticket.entries = []  # they point back at it: without the circle both are freed at once
        with self._lock:
            self._unsettled.discard(ticket)
            if ticket.remaining:  # what still waits of it is not run
                self._leave(lane, [entry for entry in entries if lane.pool.remove(entry)])
                self._lanes.forget_if_done(lane)
            quiet = not self._unsettled
        if quiet:
            self._quiet.set()
        if not ticket.future.done():
            if isinstance(outcome, BaseException):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)

    def _leave(self, lane: ModelQueue[Any], entries: Sequence[QueuedSequence[Any]]) -> None:
        """Notes that some entries no longer wait in a lane."""
        cost = sum(entry.cost for entry in entries)
        self._queued -= cost
        lane.cost_steps -= cost
