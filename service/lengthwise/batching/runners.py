"""Which thread runs the next batch: a runner, or the event loop itself ("inline").

A run on the event loop saves two changes of thread, which for a short batch cost more than the run. A long run there
would block every connection. So only a *short* batch may run inline: one predicted to end within the inline limit,
whose model's `InlineRule` allows it.

| event | state | who runs the next batch |
|---|---|---|
| sequences are queued | no runner is idle | the first runner that becomes free |
| | several cores, all runners idle, one sequence, short | the event loop, in its next turn |
| | several cores, otherwise | an idle runner, which is woken |
| | one core, the runner idle | the event loop, in its next turn |
| a batch was taken, sequences are left | several cores | another idle runner, which is woken |
| | one core, taken by the event loop | the event loop, in a further turn |
| | one core, taken by the runner | the runner, when it becomes free |
| turn of the event loop | the next batch is short | the event loop, now |
| | the next batch is not short | a runner, which is woken |
| a runner becomes free | one core, the next batch is short | the event loop, in its next turn; the runner waits |
| | otherwise | this runner, now |

With `max_wait_ms` above 0 only runners run batches: they can wait for more requests, the event loop cannot. On one core
a run in another thread is no faster, so the event loop runs all short batches, under load too.

A core whose runner is idle may help with a batch: both directions of a recurrent layer then run at once. `lend_cores`
is told how many such cores there are whenever that changes; a core is taken back before its runner is woken. The state
is under the batcher's lock; that of a model is in its queue (`ModelQueue.inline`).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from lengthwise.batching.execution import FinishedBatch, PlannedBatch
from lengthwise.batching.queues import ModelQueue, QueuedSequence

if TYPE_CHECKING:
    from lengthwise.batching.batcher import Batcher

INLINE_SECONDS: Final = 0.001  # longest predicted run of a batch on the event loop, while every runner is idle
ONE_CORE_INLINE_SECONDS: Final = 0.004  # the same where event loop and runner share one core
# How long the event loop polls for new requests after an inline run that emptied the queue: about as long as the system
# takes to wake it. It yields the core at every poll, so it delays no other process.
BUSY_POLL_SECONDS: Final = 0.0001
_SLOW_FACTOR: Final = 8  # an inline batch slower than this times the inline limit starts a cooldown of its model
_MOST_UNCOUNTED: Final = 8  # inline batches that may wait to be counted while requests arrive that run first

LendCores = Callable[[int, bool], None]  # is told how many cores are idle, and whether a batch is about to run


class Runners:
    """The runner threads, and the turns of the event loop, which takes none unless `inline`."""

    def __init__(
        self,
        source: Batcher,
        lock: threading.Lock,
        count: int,
        clock: Callable[[], float],
        *,
        inline: bool,
        one_core: bool,
        lend_cores: LendCores | None,
        cores: int,
    ) -> None:
        self.count = count
        self._clock = clock
        self._source = source
        self._execution = source.execution
        self._lock = lock
        self._work = threading.Condition(lock)
        self._may_inline = inline
        self._one_core = one_core and inline and count == 1
        self._inline_seconds = ONE_CORE_INLINE_SECONDS if self._one_core else INLINE_SECONDS
        self._idle = 0  # runners that wait for work
        self._lend_cores = lend_cores
        self._cores = cores
        self._inline = False  # whether the event loop runs a batch
        self._turn_scheduled = False  # whether `_run_inline` is going to be called
        self._stopping = False
        self._poll_end = 0.0  # until when the event loop polls; used by the event loop only
        self._uncounted: list[FinishedBatch] = []  # inline batches; used by the event loop only
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop  # from the start on

    @property
    def all_idle(self) -> bool:
        """Whether every runner waits for a batch."""
        return self._idle == self.count

    def free_cores(self, coming: int = 0) -> int:
        """Cores that nothing runs on, of as many as runners are idle, less those about to be woken (`coming`)."""
        idle = self._idle - coming
        return max(0, min(idle, self._cores - self._inline - (self.count - idle)))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the threads."""
        self._loop = loop
        for number in range(self.count):
            thread = threading.Thread(target=self._serve, name=f"runner-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def expect(self) -> None:
        """A request has arrived, which will run soon if every runner is idle; on the event loop."""
        if self._idle == self.count and self._lend_cores is not None:
            with self._lock:
                self._lend(soon=True)

    def wake(self, queue: ModelQueue, added: Sequence[QueuedSequence]) -> None:
        """Decides who runs sequences that were just queued; on the event loop, with the lock held."""
        if not self._idle:
            return
        if (
            self._idle == self.count
            and self._may_inline
            and queue.inline.possible
            and (self._one_core or (len(added) == 1 and queue.predict(1, added[0].width) <= INLINE_SECONDS))
        ):
            # In the next turn, so that other sequences that arrive in this turn are in the same batch.
            self._schedule_turn(self._loop.call_soon)
        else:
            self._notify(len(added))

    def wake_another(self) -> None:
        """Decides who runs what is left after a batch was taken; with the lock held."""
        if self._one_core:
            if threading.current_thread() not in self._threads:
                self._schedule_turn(self._loop.call_soon)
        elif self._idle:
            self._notify(1)

    def wake_all(self) -> None:
        """Has all runners that wait for more requests look again; with the lock held."""
        self._work.notify_all()

    def stop(self) -> None:
        """Lets no further batch run; with the lock held."""
        self._stopping = True
        self._work.notify_all()

    async def join(self, seconds: Callable[[], float]) -> None:
        """Waits for the threads to end, `seconds()` for the next of them: a run that hangs must not block the exit."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, seconds()))

    def _serve(self) -> None:
        while True:
            planned = self._next_batch()
            if planned is None:
                return
            finished = self._execution.run(planned)
            self._check_speed(finished)
            self._execution.count(finished)
            if finished.outcomes:
                with suppress(RuntimeError):  # the event loop was closed during a run that outlasted the drain
                    self._loop.call_soon_threadsafe(self._source.settle_all, finished.outcomes)
            del planned, finished  # an idle runner must not keep a model in memory that is no longer served

    def _next_batch(self) -> PlannedBatch | None:
        """Waits for a batch to run in this thread; None if everything stops."""
        with self._lock:
            while True:
                if self._stopping:
                    return None
                queue, wait_seconds = self._source.next_queue()
                if queue is not None:
                    if not (self._one_core and self._is_short(queue)):
                        return self._source.take_batch(queue)
                    self._schedule_turn(self._loop.call_soon_threadsafe)
                    wait_seconds = None
                elif wait_seconds is None and self._idle == self.count - 1 and self._ran_cold_shape():
                    continue
                self._idle += 1
                self._lend()
                self._work.wait(wait_seconds)
                self._idle -= 1
                self._lend(soon=True)

    def _ran_cold_shape(self) -> bool:
        """Whether there was a shape that had not run; while it runs, the lock is free."""
        warm = self._source.next_cold()
        if warm is None:
            return False
        self._lock.release()
        try:
            warm()
        finally:
            self._lock.acquire()
        return True

    def _notify(self, count: int) -> None:
        """Wakes idle runners, and takes back their cores first; with the lock held."""
        self._lend(coming=min(count, self._idle))
        self._work.notify(count)

    def _lend(self, coming: int = 0, *, soon: bool = False) -> None:
        """Tells how many cores are free, and whether a batch is about to run; with the lock held."""
        if self._lend_cores is not None:
            self._lend_cores(self.free_cores(coming), soon)

    def _schedule_turn(self, call: Callable[[Callable[[], None]], object]) -> None:
        """Schedules a batch on the event loop, unless one is scheduled already."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            call(self._run_inline)

    def _run_inline(self) -> None:
        """A turn of the event loop: runs one batch if it is short, and else leaves it to the runners."""
        self._loop.call_soon(self._count_inline)  # after answers that are written at once
        planned = self._take_inline()
        if planned is None:
            return
        finished = self._execution.run(planned)
        self._uncounted.append(finished)
        with self._lock:
            self._inline = False
            self._lend()
        self._check_speed(finished)
        self._source.settle_all(finished.outcomes)
        self._poll_end = self._clock() + BUSY_POLL_SECONDS
        self._loop.call_soon(self.busy_poll, self._loop)

    def _take_inline(self) -> PlannedBatch | None:
        """The batch that this turn of the event loop runs; None if there is none, or it is not short."""
        with self._lock:
            self._turn_scheduled = False
            queue, _ = self._source.next_queue()
            if queue is None or self._stopping:
                return None
            if not self._is_short(queue):
                self._notify(len(queue.pending))
                return None
            self._inline = True
            planned = self._source.take_batch(queue, seconds=self._inline_seconds)
            if not queue.pending:  # else a runner was just woken
                self._lend(soon=True)
            return planned

    def _count_inline(self) -> None:
        """Counts the inline batches that ran. A request that has arrived meanwhile runs first, unless many wait."""
        if self._turn_scheduled and len(self._uncounted) < _MOST_UNCOUNTED:
            return  # that turn has them counted
        finished, self._uncounted = self._uncounted, []
        for each in finished:
            self._execution.count(each)

    def busy_poll(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keeps the event loop from sleeping until `BUSY_POLL_SECONDS` are over or work arrives."""
        if self._idle == self.count and not self._turn_scheduled and self._clock() < self._poll_end:
            if hasattr(os, "sched_yield"):
                os.sched_yield()  # another process that waits for this core, perhaps a client, runs first
            loop.call_soon(self.busy_poll, loop)

    def _check_speed(self, finished: FinishedBatch) -> None:
        """Starts a cooldown for a model whose batch was predicted to be short and was much slower."""
        planned, limit = finished.planned, self._inline_seconds
        if planned.seconds <= limit and finished.work_seconds > _SLOW_FACTOR * limit:
            planned.queue.inline.start_cooldown(finished.work_seconds, self._clock())

    def _is_short(self, queue: ModelQueue) -> bool:
        rule = queue.inline
        return rule.possible and rule.cooldown_end <= self._clock() and queue.fits(self._inline_seconds)
