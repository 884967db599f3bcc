"""Admits sequences, lets them wait, runs them in company, and gives each its answer: exactly once.

```
event loop                                    runner threads, one for each core
──────────                                    ──────────────────────────────────
submit: full? draining? too late? ── wake ──> take the next batch: fair share of models, then plan
   await the ticket's future                  pad, run, score; finish the tickets that are complete
   <────────────── one call for all of them ──┘ and take the next, without asking the loop
```

A runner takes its next batch by itself, so between two batches nothing waits for the event loop; the next batch gathers
while one runs, and a lone request on an idle server never waits for company (unless `max_wait_ms` says so).

Who waits is a `Ticket`, what is computed an `Entry` (`service.lanes`). A ticket is settled in one place, `_settle`,
which does nothing when it is settled already; so a deadline, a client that left, a failed batch and a good answer may
come in any order. Everything shared between the threads is under one lock, which is held for deciding, never for
computing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from service.errors import DeadlineExceeded, Draining, NotReady, QueueFull, TooLarge
from service.execution import Execution, OnBatch, Outcomes, Taken
from service.lanes import Entry, Lane, Lanes, Ticket, Timing, Waiter
from service.padding import Steps
from service.plan import plan

log = logging.getLogger("lengthwise.batcher")

R = TypeVar("R")

INLINE_SECONDS: Final = 0.001
"""Longest predicted run that the event loop does itself while every runner is idle."""
ONE_CORE_INLINE_SECONDS: Final = 0.004
"""The same where the loop and the runner share one core: there, no run is faster for being in another thread."""
HELD_FACTOR: Final = 8
"""How many times longer than it may a run has held the event loop when its model is left to the runners for a while:
costs are learned a few percent a batch, and one that is far slower than was measured would hold it for all of these."""
HELD_PAUSE: Final = 100
"""How long that while is, in times of that run: the event loop is held for a hundredth of the time at most."""


class Batcher:
    """All lanes, and the runner threads that serve them.

    Args:
        runners: Number of threads.
        max_queue_cost_steps: Most padded steps that may wait, over all lanes.
        max_wait_seconds: Longest that a sequence waits for company while a runner is idle.
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
        self._runners = runners
        self._max_queue = max_queue_cost_steps
        self._clock = clock
        self._lanes = Lanes(max_wait_seconds)
        self._batches_company = max_wait_seconds > 0
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._execution = Execution(self._lanes, self._lock, clock, on_batch)
        self._idle = 0
        self._queued = 0
        self._unsettled: set[Ticket[Any]] = set()
        self._turn_asked = False
        self._one_core = one_core and max_wait_seconds <= 0
        self._inline_seconds = ONE_CORE_INLINE_SECONDS if self._one_core else INLINE_SECONDS
        self._draining = False
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quiet = asyncio.Event()  # set while nothing accepted is unanswered
        self._quiet.set()

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self._draining

    async def start(self) -> None:
        """Starts the runners on the running event loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self._runners):
            thread = threading.Thread(target=self._serve, name=f"runner-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def lanes(self) -> list[Lane[Any]]:
        """Every lane that is open, or closed and not empty yet."""
        with self._lock:
            return list(self._lanes)

    def open(self, lane: Lane[Any]) -> None:
        """Adds a model's lane."""
        with self._lock:
            self._lanes.open(lane)

    def close(self, lane: Lane[Any]) -> None:
        """Forgets a lane when it is empty.

        What waits in it is still answered, and so is a call that was read for its model before this and comes after.
        """
        with self._lock:
            lane.closed = True
            self._lanes.forget_if_done(lane)

    def submit(
        self,
        lane: Lane[R],
        sequences: Sequence[Steps],
        finish: Callable[[list[R], Timing], Any],
        *,
        deadline: float = float("inf"),
        priority: int = 0,
        attention: bool = False,
        waiter: Waiter | None = None,
        trace: Any = None,
    ) -> Ticket[R]:
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
        future = loop.create_future() if waiter is None else waiter
        results: list[R | None] = [None] * len(sequences)
        ticket: Ticket[R] = Ticket(lane, future, finish, attention, results, len(sequences), trace=trace)
        entries = [
            Entry(
                lane.width_of(len(steps)),
                deadline,
                priority,
                steps=steps,
                cost=lane.padded_length(len(steps)),
                arrival=now,
                index=i,
                ticket=ticket,
            )
            for i, steps in enumerate(sequences)
        ]
        ticket.entries = entries
        cost = sum(entry.cost for entry in entries)
        if cost > self._max_queue:
            raise TooLarge(f"{cost} padded steps; the queue holds {self._max_queue} in all")
        if deadline <= now:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        with self._lock:
            if self._draining:
                raise Draining("the server is shutting down", retry_after_seconds=1)
            if self._queued + cost > self._max_queue and self._lanes.beyond_share(lane, cost, self._max_queue):
                raise QueueFull("the queue is full", retry_after_seconds=self._lanes.backlog_seconds() / self._runners)
            self._queued += cost
            lane.cost_steps += cost
            self._unsettled.add(ticket)
            self._lanes.wake(lane)
            for entry in entries:
                lane.pool.add(entry)
            if self._idle:
                self._wake(lane, ticket)
        self._quiet.clear()
        if deadline != float("inf"):
            ticket.timer = loop.call_later(deadline - now, self._expire, ticket)
        return ticket

    def _wake(self, lane: Lane[Any], ticket: Ticket[Any]) -> None:
        """Has somebody take what was just queued: an idle runner, or at rest the event loop itself.

        Two changes of thread cost more than a short run does, so where every runner is idle and the run is short, it
        runs on the loop: in its next turn, when whatever else has arrived by now is queued too and shares the batch.
        """
        entries = ticket.entries
        short = self._one_core or (len(entries) == 1 and lane.cost.predict(1, entries[0].width) <= INLINE_SECONDS)
        if self._idle == self._runners and short and not self._batches_company and self._loop is not None:
            self._ask_turn(self._loop.call_soon)
        else:
            self._work.notify(len(entries))

    def _ask_turn(self, call: Callable[[Callable[[], None]], object]) -> None:
        """Has the event loop run a batch soon, unless it will anyway."""
        if not self._turn_asked:
            self._turn_asked = True
            call(self._take_turn)

    def _take_turn(self) -> None:
        """Runs one short batch on the event loop, and leaves what is long to the runners."""
        with self._lock:
            self._turn_asked = False
            lane, _ = self._next_lane()
            if lane is None or self._stopping:
                return
            if not self._fits_loop(lane):
                self._work.notify(len(lane.pool))
                return
            taken = self._taken(lane, seconds=self._inline_seconds)
            if self._one_core and self._loop is not None and self._lanes.waiting():
                self._ask_turn(self._loop.call_soon)
        outcomes = self._execution.run(taken)
        effort = lane.cost.clock() - taken.began
        if effort > HELD_FACTOR * self._inline_seconds:
            lane.runners_until = self._clock() + HELD_PAUSE * effort
        self._settle_all(outcomes)

    def _fits_loop(self, lane: Lane[Any]) -> bool:
        """Whether a lane's next batch is short enough for the event loop, with as many rows as are worth waiting for.

        What a plan can start from counts: a long sequence that ran alone, to be short enough, would cost twice as much.
        """
        if lane.runners_until > self._clock():
            return False
        first = (lane.pool.most_urgent(), lane.pool.earliest_deadline())
        widest = max(waiting.width for waiting in first if waiting is not None)
        column = lane.cost.column(widest, lane.limits.rows)
        return column.seconds[min(len(lane.pool), column.enough)] <= self._inline_seconds

    def withdraw(self, ticket: Ticket[Any], error: BaseException) -> None:
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
            self._work.notify_all()  # whoever waits for company waits no more
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        late = list(self._unsettled)
        for ticket in late:
            self._settle(ticket, Draining("the server stopped before the answer was there", retry_after_seconds=1))
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        # A run that hangs, or whose callers have all left, must not hold the exit.
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, until - self._clock()))
        return not late

    def begin_draining(self) -> None:
        """Takes nothing new from now on; `drain` waits for the rest. Safe in a signal handler: takes no lock."""
        self._draining = True

    def _serve(self) -> None:
        """A runner: takes a batch, runs it, and again, until everything stops."""
        while True:
            taken = self._take()
            if taken is None:
                return
            outcomes = self._execution.run(taken)
            if outcomes and self._loop is not None:
                with suppress(RuntimeError):  # the loop was closed over a run that outlasted the drain
                    self._loop.call_soon_threadsafe(self._settle_all, outcomes)
            del taken, outcomes  # a runner that waits must not keep a model that nobody serves any more

    def _take(self) -> Taken | None:
        """The next batch, after waiting for one; None when everything stops."""
        with self._lock:
            while True:
                if self._stopping:
                    return None
                lane, wait = self._next_lane()
                if lane is not None:
                    if not (self._one_core and self._loop is not None and self._fits_loop(lane)):
                        return self._taken(lane, self._lanes.turn_seconds())
                    self._ask_turn(self._loop.call_soon_threadsafe)
                    wait = None
                self._idle += 1
                self._work.wait(wait)
                self._idle -= 1

    def _next_lane(self) -> tuple[Lane[Any] | None, float | None]:
        """Whose turn it is, see `Lanes.next`. What is late leaves its queue, though its timer may not have fired."""
        now = self._clock()
        for lane in self._lanes:
            while isinstance(late := lane.pool.earliest_deadline(), Entry) and late.deadline <= now:
                lane.pool.remove(late)
                self._leave(lane, [late])
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._expire, late.ticket)
        return self._lanes.next(now, draining=self._draining)

    def _taken(self, lane: Lane[Any], seconds: float) -> Taken:
        """Takes a lane's next batch out of its queue, and wakes another runner if anything still waits."""
        began = lane.cost.clock()
        entries = self._plan(lane, seconds)
        lane.inflight += 1
        self._leave(lane, entries)
        if self._idle and not self._one_core and self._lanes.waiting():
            self._work.notify()
        return Taken(lane, entries, began)

    def _plan(self, lane: Lane[Any], seconds: float) -> list[Any]:
        limits = lane.limits if seconds >= lane.limits.seconds else replace(lane.limits, seconds=seconds)
        try:
            return plan(lane.pool, lane.cost, limits, self._clock())
        except Exception:  # whatever is wrong with a plan must not end the runner
            log.exception("planning failed for %s; the most urgent sequence runs alone", lane.name)
            urgent = lane.pool.most_urgent()
            if urgent is None:
                return []
            lane.pool.remove(urgent)
            return [urgent]

    def _settle_all(self, outcomes: Outcomes) -> None:
        """Gives a batch's tickets their outcomes; what is late has none, though its timer has not fired yet."""
        now = self._clock()
        for ticket, outcome in outcomes:
            if ticket.entries and ticket.entries[0].deadline <= now:
                self._expire(ticket)
            else:
                self._settle(ticket, outcome)

    def _expire(self, ticket: Ticket[Any]) -> None:
        self._settle(ticket, DeadlineExceeded("the deadline passed before the answer was there"))

    def _settle(self, ticket: Ticket[Any], outcome: Any) -> None:
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

    def _leave(self, lane: Lane[Any], entries: Sequence[Entry[Any]]) -> None:
        """Notes that some entries no longer wait in a lane."""
        cost = sum(entry.cost for entry in entries)
        self._queued -= cost
        lane.cost_steps -= cost
