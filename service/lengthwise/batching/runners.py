"""Who runs the batches: threads that take the next one by themselves, and the event loop where it is better off alone.

```
         queued ──> is every runner idle, and the next batch short?
                      yes: the event loop runs it in its next turn        two changes of thread cost more than the run
                      no:  an idle runner is woken, or the next that is free takes it
```

Where event loop and runner share one core, no run is faster for being in another thread, so there the loop runs all
that is short, under load too, and the runner is left with what is long.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from lengthwise.batching.execution import Execution, Outcomes, Ran, Taken
from lengthwise.batching.queues import ModelQueue, QueuedSequence

INLINE_SECONDS: Final = 0.001
"""Longest predicted run that the event loop does itself while every runner is idle."""
ONE_CORE_INLINE_SECONDS: Final = 0.004
"""The same where the loop and the runner share one core."""
HELD_FACTOR: Final = 8
"""How many times longer than the event loop may be held a run took, that was predicted to be shorter, when its model is
left to the runners for a while: costs are learned a few percent a batch, and one that is far slower than was measured
would hold the loop for all of these."""
HELD_PAUSE: Final = 100
"""How long that while is at least, in times of that run: the event loop is held for a hundredth of the time at most."""
LONGEST_PAUSE_SECONDS: Final = 3600.0
_FORGOTTEN: Final = 10
"""After how many such whiles without a slow run the next one counts as the first; until then each doubles."""

AWAKE_SECONDS: Final = 0.0001
"""How long the event loop looks for another request, when it has run all that waited, before it sleeps. To be woken
takes about as long, so a client that asks again at once is answered sooner. It costs a server with little to do this
much of its core a batch, at most; whoever else wants the core gets it at once."""


class Queue(Protocol):
    """Where batches come from, and where what became of them goes."""

    def next_lane(self) -> tuple[ModelQueue[Any] | None, float | None]:
        """The lane whose turn it is, or None and the seconds until there will be one, if anything waits.

        The lock is held.
        """

    def take(self, lane: ModelQueue[Any], *, seconds: float = float("inf")) -> Taken:
        """A lane's next batch, out of its queue, no longer than so many seconds; the lock is held."""

    def settle_all(self, outcomes: Outcomes) -> None:
        """Gives tickets their outcomes; on the event loop."""


class Runners:
    """The threads, and the event loop's turns.

    Args:
        queue: Where the work is.
        execution: Runs a batch.
        lock: Held wherever the queue is looked at.
        count: Number of threads.
        clock: Seconds.
        one_core: Whether event loop and runner share one core.
        patient: Whether a sequence may wait for company; then nothing runs on the loop, whose turns come at once.
    """

    def __init__(
        self,
        queue: Queue,
        execution: Execution,
        lock: threading.Lock,
        count: int,
        clock: Callable[[], float],
        *,
        one_core: bool,
        patient: bool,
    ) -> None:
        self.count = count
        self._clock = clock
        self._queue = queue
        self._execution = execution
        self._lock = lock
        self._work = threading.Condition(lock)
        self._idle = 0
        self._one_core = one_core and count == 1 and not patient
        self._patient = patient
        self._inline_seconds = ONE_CORE_INLINE_SECONDS if self._one_core else INLINE_SECONDS
        self._turn_asked = False
        self._awake_until = 0.0
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def all_idle(self) -> bool:
        """Whether every runner waits for a batch."""
        return self._idle == self.count

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the threads."""
        self._loop = loop
        for number in range(self.count):
            thread = threading.Thread(target=self._serve, name=f"runner-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self, lane: ModelQueue[Any], entries: list[QueuedSequence[Any]]) -> None:
        """Has somebody take what was just queued; on the event loop, with the lock held."""
        if not self._idle:
            return
        short = self._one_core or (len(entries) == 1 and lane.cost.predict(1, entries[0].width) <= INLINE_SECONDS)
        short = short and lane.steady and not lane.first_runs
        if self._idle == self.count and short and not self._patient and self._loop is not None:
            # In its next turn: whatever else has arrived by then is queued too, and shares the batch.
            self._ask_turn(self._loop.call_soon)
        else:
            self._work.notify(len(entries))

    def wake_another(self) -> None:
        """Something still waits where a batch was taken; with the lock held."""
        if self._one_core:
            if self._loop is not None and threading.current_thread() not in self._threads:
                self._ask_turn(self._loop.call_soon)
        elif self._idle:
            self._work.notify()

    def wake_all(self) -> None:
        """Whoever waits for company looks again; with the lock held."""
        self._work.notify_all()

    def stop(self) -> None:
        """Takes no further batch; with the lock held."""
        self._stopping = True
        self._work.notify_all()

    async def join(self, seconds: Callable[[], float]) -> None:
        """Waits for the threads to end, for so many seconds at most: a run that hangs must not hold the exit."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, seconds()))

    def _serve(self) -> None:
        """A runner: takes a batch, runs it, and again, until everything stops."""
        while True:
            taken = self._take()
            if taken is None:
                return
            ran = self._execution.run(taken)
            self._watch(ran)
            self._execution.count(ran)
            if ran.outcomes and self._loop is not None:
                with suppress(RuntimeError):  # the loop was closed over a run that outlasted the drain
                    self._loop.call_soon_threadsafe(self._queue.settle_all, ran.outcomes)
            del taken, ran  # a runner that waits must not keep a model that nobody serves any more

    def _take(self) -> Taken | None:
        """The next batch, after waiting for one; None when everything stops."""
        with self._lock:
            while True:
                if self._stopping:
                    return None
                lane, wait = self._queue.next_lane()
                if lane is not None:
                    if not (self._one_core and self._loop is not None and self._fits_loop(lane)):
                        return self._queue.take(lane)
                    self._ask_turn(self._loop.call_soon_threadsafe)
                    wait = None
                self._idle += 1
                self._work.wait(wait)
                self._idle -= 1

    def _ask_turn(self, call: Callable[[Callable[[], None]], object]) -> None:
        """Has the event loop run a batch soon, unless it will anyway."""
        if not self._turn_asked:
            self._turn_asked = True
            call(self._take_turn)

    def _take_turn(self) -> None:
        """Runs one short batch on the event loop, and leaves what is long to the runners."""
        with self._lock:
            self._turn_asked = False
            lane, _ = self._queue.next_lane()
            if lane is None or self._stopping:
                return
            if not self._fits_loop(lane):
                self._work.notify(len(lane.pool))
                return
            taken = self._queue.take(lane, seconds=self._inline_seconds)
        ran = self._execution.run(taken)
        self._watch(ran)
        if self._loop is not None:
            self._loop.call_soon(self._execution.count, ran)  # when the answers are on their way
        self._queue.settle_all(ran.outcomes)
        if self._loop is not None:
            self._awake_until = self._clock() + AWAKE_SECONDS
            self._loop.call_soon(self._stay_awake, self._loop)

    def _stay_awake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the event loop look for requests again, for a while: between two of its turns it does not sleep."""
        at_rest = self._idle == self.count and not self._turn_asked
        if at_rest and self._clock() < self._awake_until:
            _give_way()
            loop.call_soon(self._stay_awake, loop)

    def _watch(self, ran: Ran) -> None:
        """Leaves a model to the runners for a while, if its run was far slower than its costs say, wherever it ran."""
        if ran.effort <= HELD_FACTOR * self._inline_seconds:
            return
        lane, now = ran.taken.lane, self._clock()
        if lane.cost.predict(len(ran.taken.entries), ran.taken.width) > self._inline_seconds:
            return
        ago = now - lane.runners_until
        longer = 0.0 if ago >= _FORGOTTEN * lane.pause_seconds else lane.pause_seconds
        if ago >= 0:  # not while it is the runners' anyway
            longer *= 2
        lane.pause_seconds = min(max(HELD_PAUSE * ran.effort, longer), LONGEST_PAUSE_SECONDS)
        lane.runners_until = now + lane.pause_seconds

    def _fits_loop(self, lane: ModelQueue[Any]) -> bool:
        """Whether a lane's next batch is one for the event loop: surely short."""
        return (
            lane.steady
            and not lane.first_runs
            and lane.runners_until <= self._clock()
            and lane.fits(self._inline_seconds)
        )


def _give_way() -> None:
    """Lets another process that waits for this core run, where the system knows how; a client may share it."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
