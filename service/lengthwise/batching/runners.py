"""Which thread runs the next batch: a runner, or the event loop itself ("inline").

A run on the event loop saves two changes of thread, which for a short batch cost more than the run. A long run there
would block every connection. So only a *short* batch may run inline: one predicted to end within the inline limit,
whose model's `InlineRule` allows it. A *turn* here is a scheduled call of `_run_inline` on the event loop. A runner is
*idle* while it waits for a batch, and *woken* from then on until it has looked for one.

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
| | the next batch is not short, or a batch is on the one device | a runner, which is woken |
| a runner becomes free | one core, the next batch is short | the event loop, in its next turn; the runner waits |
| | otherwise | this runner, now |

With `max_wait_ms` above 0 only runners run batches: they can wait for more requests, the event loop cannot. On one core
a run in another thread is no faster, so the event loop runs all short batches, under load too.

Several processes that serve together share their cores (`Cores`). A process may always run as many batches as its
*share*, the number of its runners without borrowed cores. A further batch starts only while fewer run in all processes
than there are cores. So if only one process has work, it uses every core; "one core" above is a process with a share of
one while all others are busy.

A core whose runner is idle may help with a batch: both directions of a recurrent layer then run at once. `lend_cores`
is told how many such cores there are whenever that changes; a core is taken back before its runner is woken. The state
is under the batcher's lock; that of a model is in its queue (`ModelQueue.inline`).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, MutableSequence, Sequence
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

REST_SECONDS: Final = 0.005  # a process that had no request and no batch for so long lets others use its core
_LOOK_SECONDS: Final = 0.001  # how old a look at the other processes may be if it only decides which cores help
_MOST_THREADS: Final = 16  # runners of a process that borrows cores: the Python code of so many batches fills one core

LendCores = Callable[[int, bool], None]  # gets how many idle cores may help, and whether a batch is about to run


class Cores:
    """The cores of one process, and the cores that it may borrow from processes that serve with it.

    Two processes that look at the same time may borrow the same core, for one batch.

    Args:
        local: Cores of this process.
        total: Cores of all processes.
        batches: `[processes]`, in memory that all processes share, with a number for each process. Above 0: how many
            batches run there. Below 0: none runs, and it is minus the time (`time.monotonic`, in seconds) when the last
            batch ended or the last request came. 0: no batch has run yet.
        process: The index of this process.
    """

    def __init__(
        self, local: int = 1, total: int = 1, batches: MutableSequence[float] | None = None, process: int = 0
    ) -> None:
        self.local = local
        self.total = max(local, total)
        self._batches: MutableSequence[float] = [0.0] if batches is None else batches
        self._process = process
        self._used_elsewhere = 0  # cores that the other processes used at the last look
        self._next_look = 0.0

    def note(self, running: int) -> None:
        """Publishes to the other processes how many batches run here; if 0, the present time in its place."""
        self._batches[self._process] = running or -time.monotonic()

    def free(self, running: int, *, look: bool = True) -> int:
        """Returns how many more batches may begin: the cores of all processes, less those that are used.

        It is negative if more batches run than there are cores.

        Args:
            running: How many batches run in this process.
            look: Whether to look now at what the other processes do; if not, a recent look may do.
        """
        now = time.monotonic()
        if self.total > self.local and (look or now > self._next_look):
            self._next_look = now + _LOOK_SECONDS
            elsewhere = [*self._batches]
            del elsewhere[self._process]
            # A process whose last batch has just ended uses one core: its next batch is probably near.
            self._used_elsewhere = int(
                sum(number if number > 0 else now + number < REST_SECONDS for number in elsewhere)
            )
        return self.total - self._used_elsewhere - running


class Runners:
    """The runner threads, and the turns of the event loop.

    Args:
        source: Plans the batches, and gives the answers; lock, clock and turns are those of its execution.
        count: The share of this process: how many batches it may always run at once.
        inline: Whether the event loop may run batches at all.
        one_core: Whether this process has one core.
        lend_cores: Called with the number of idle cores that may help; None if none ever do.
        cores: The cores of this process and of those that serve with it.
    """

    def __init__(
        self,
        source: Batcher,
        count: int,
        *,
        inline: bool,
        one_core: bool,
        lend_cores: LendCores | None,
        cores: Cores,
    ) -> None:
        self._share = count  # batches that may run at once, whatever other processes do
        # Threads: the share, and those that may borrow cores
        self.count = count if cores.total == cores.local else max(count, min(cores.total, _MOST_THREADS))
        self._source = source
        self._execution = execution = source.execution
        self._lock, self._clock, self._turns = execution.lock, execution.clock, execution.turns
        self._may_inline = inline
        self._one_core = one_core and inline and count == 1
        self._inline_seconds = ONE_CORE_INLINE_SECONDS if self._one_core else INLINE_SECONDS
        # One for each idle runner, as a stack: the last to rest has warm caches, and is woken first
        self._idle = list[threading.Condition]()
        self._woken = 0  # runners that were woken and have not looked for a batch yet
        self._lend_cores = lend_cores
        self._cores = cores
        self._inline = False  # whether the event loop runs a batch
        self._turn_scheduled = False  # whether `_run_inline` is going to be called
        self._stopping = False
        self._poll_end = 0.0  # until when the event loop polls; used by the event loop only
        self._uncounted: list[FinishedBatch] = []  # inline batches that ran; used by the event loop only
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop  # set by `start`

    @property
    def all_idle(self) -> bool:
        """Whether every runner waits for a batch."""
        return len(self._idle) == self.count

    @property
    def _running(self) -> int:
        """How many batches run, or are about to: runners that are not idle, and the event loop."""
        return self.count - len(self._idle) + self._inline

    @property
    def share_of_running(self) -> float:
        """The share of this process over its batches that run: 1, or less while some run on borrowed cores."""
        return min(1.0, self._share / max(1, self.count - len(self._idle)))

    def count_helpers(self) -> int:
        """Returns how many runners may take a part of the queue, beside the one that takes a batch now; at least 0.

        These are the idle and the woken runners, but at most as many as there are free cores. If there are none, and
        some batches run on borrowed cores, it is the number of batches that run: they end soon. The lock is held.
        """
        running = self._running - self._woken
        free_cores = max(self._cores.local - running, self._cores.free(running))
        helpers = max(0, min(len(self._idle) + self._woken, free_cores))
        return helpers or (running if self.share_of_running < 1 else 0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the threads."""
        self._loop = loop
        for number in range(self.count):
            thread = threading.Thread(target=self._serve, name=f"runner-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def expect(self) -> None:
        """Prepares for a request that has arrived and is still decoded; on the event loop.

        If every runner is idle, its batch runs soon: `lend_cores` is told so now.
        """
        if self.all_idle and self._lend_cores is not None:
            with self._lock:
                self._lend(starting=1, soon=True)

    def wake(self, queue: ModelQueue, added: Sequence[QueuedSequence]) -> None:
        """Schedules a turn of the event loop for sequences that were just queued, or wakes idle runners for them.

        The module's table says which. If no runner is idle, it does nothing. On the event loop, with the lock held.
        """
        if not self._idle:
            return
        if (
            self.all_idle
            and self._may_inline
            and queue.inline.possible
            and ((len(added) == 1 and queue.predict(1, added[0].width) <= self._inline_seconds) or self._has_one_core())
        ):
            # In the next turn, so that other sequences that arrive in this turn are in the same batch.
            self._schedule_turn(self._loop.call_soon)
        else:
            self._wake_allowed(len(added))

    def wake_for_remaining(self) -> None:
        """Wakes an idle runner for the sequences that are left after a batch was taken, or schedules a turn for them.

        The module's table says which. With the lock held.
        """
        woken = 0 if self._has_one_core() else self._wake_allowed(1)
        if self._one_core and not woken and threading.current_thread() not in self._threads:  # the event loop took it
            self._schedule_turn(self._loop.call_soon)

    def wake_all(self) -> None:
        """Wakes all idle runners, which look again for a batch, or end; with the lock held."""
        self._wake(len(self._idle))

    def stop(self) -> None:
        """Lets no further batch run; with the lock held."""
        self._stopping = True
        self.wake_all()

    async def join(self, seconds: Callable[[], float]) -> None:
        """Waits for the threads to end, for each at most `seconds()`, called anew for each.

        A run that hangs must not block the exit.
        """
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, seconds()))

    def _serve(self) -> None:
        """The loop of a runner's thread: waits for a batch, runs it, and has the event loop give the answers."""
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
        """Waits until this thread should run a batch, and takes the batch; None if the runners stop.

        While it waits, the runner is idle: its core may help with other batches, and a device may run a cold shape.
        """
        work = threading.Condition(self._lock)
        with self._lock:
            while True:
                if self._stopping:
                    return None
                queue, wait_seconds = self._source.next_queue()
                others_idle = len(self._idle) == self.count - 1
                # 1. Take a batch, unless another thread or the event loop should. With nothing to do at all, run a cold
                # shape, and look again.
                if queue is not None:
                    if self._may_run(queue):
                        if (seconds := self._turns.seconds_to_wait()) > 0:
                            self._turns.wait(seconds)
                            continue
                        return self._source.take_batch(queue)
                    if self._one_core and others_idle:
                        self._schedule_turn(self._loop.call_soon_threadsafe)
                    wait_seconds = None  # a thread that runs a batch looks for the next one at its end
                elif wait_seconds is None and others_idle and self._run_cold_shape():
                    continue
                # 2. Otherwise become idle, until another thread wakes this one or `wait_seconds` are over.
                self._idle.append(work)
                self._lend()
                work.wait(wait_seconds)
                if work in self._idle:  # the time is over, and no thread has woken it
                    self._idle.remove(work)
                else:
                    self._woken -= 1
                self._lend(soon=True)

    def _run_cold_shape(self) -> bool:
        """Runs a cold shape, one that a device has not run yet; returns whether there was one (`Batcher.next_cold`).

        The lock is held before and after, but not while the shape runs.
        """
        warm = self._source.next_cold()
        if warm is None:
            return False
        self._lock.release()
        try:
            warm()
        finally:
            self._lock.acquire()
        return True

    def _may_run(self, queue: ModelQueue) -> bool:
        """Whether this thread may run the queue's next batch; with the lock held.

        It may if the batch is within the share of this process, or if a core of any process is free. With one core, a
        batch is within the share only if nothing else runs here, and the batch is not short: the event loop runs those.
        """
        other_runners = self.count - len(self._idle) - 1
        if self._one_core:
            is_within_share = other_runners + self._inline == 0 and not self._is_short(queue)
        else:
            is_within_share = other_runners < self._share
        return is_within_share or self._cores.free(max(self._share, other_runners + self._inline)) > 0

    def _has_one_core(self) -> bool:
        """Whether runner and event loop share one core now, as none can be borrowed; with the lock held."""
        return self._one_core and self._cores.free(max(1, self._running), look=False) <= 0

    def _wake_allowed(self, count: int) -> int:
        """Wakes up to `count` idle runners, as many as may run a batch; returns how many. The lock is held."""
        within_share = self._share - (self.count - len(self._idle))
        if count > within_share:
            count = min(count, max(within_share, self._cores.free(self._running, look=False)))
        count = max(0, min(count, len(self._idle)))
        if count:
            self._wake(count)
        return count

    def _wake(self, count: int) -> None:
        """Wakes so many idle runners, after taking back the cores with which they helped; with the lock held."""
        woken = [self._idle.pop() for _ in range(count)]
        self._woken += count
        self._lend()  # before they look
        for work in woken:
            work.notify()

    def _lend(self, starting: int = 0, *, soon: bool = False) -> None:
        """Publishes how many batches run here, and calls `lend_cores` with how many cores may help; with the lock held.

        All processes see the same free cores, and may take them at the same moment. So cores of other processes help
        only while at least half of all are free.

        Args:
            starting: How many batches will run soon, beside those that run now.
            soon: Whether a batch is about to run.
        """
        self._cores.note(self._running)
        if self._lend_cores is not None:
            running = self._running + starting
            free_cores = self._cores.free(running, look=False)
            if 2 * free_cores < self._cores.total:
                free_cores = self._cores.local - running
            self._lend_cores(max(0, min(len(self._idle) - starting, free_cores)), soon)

    def _schedule_turn(self, call: Callable[[Callable[[], None]], object]) -> None:
        """Schedules a turn of the event loop, unless one is scheduled already.

        `call` has the event loop call a function: `call_soon`, or in another thread `call_soon_threadsafe`.
        """
        if not self._turn_scheduled:
            self._turn_scheduled = True
            call(self._run_inline)

    def _run_inline(self) -> None:
        """Takes a turn of the event loop: runs the next batch if it is short.

        Otherwise `_take_inline` has woken a runner for it. After a batch the event loop polls for requests for a short
        time (`busy_poll`), because its clients often send the next ones at once.
        """
        # The batches that ran inline are counted in the loop's next iteration, so that callers get their answers first.
        # It is asked for before the run, also where none follows: earlier turns may have left some.
        self._loop.call_soon(self._count_inline)
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
        """Takes the batch that this turn of the event loop runs.

        None if there is none; if it is not short, or a device is busy, it wakes runners for it, and returns None, too.
        """
        with self._lock:
            self._turn_scheduled = False
            queue, _ = self._source.next_queue()
            if queue is None or self._stopping:
                return None
            # The event loop must not wait for a device
            if not self._is_short(queue) or (self._turns.one_device and self._turns.running):
                self._wake_allowed(len(queue.pending))
                return None
            self._inline = True
            planned = self._source.take_batch(queue, seconds=self._inline_seconds)
            if not queue.pending:  # else a runner was just woken
                self._lend(soon=True)
            return planned

    def _count_inline(self) -> None:
        """Counts the inline batches that ran, in the metrics and costs.

        If a turn is scheduled, because a request has arrived meanwhile, that turn comes first, and counting waits for
        it, unless many batches wait to be counted.
        """
        if self._turn_scheduled and len(self._uncounted) < _MOST_UNCOUNTED:
            return  # `_run_inline`, which is scheduled, has this called again
        uncounted, self._uncounted = self._uncounted, []
        for finished in uncounted:
            self._execution.count(finished)

    def busy_poll(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keeps the event loop from sleeping for `BUSY_POLL_SECONDS` after an inline batch, or until work arrives.

        A request that comes soon is then read earlier. It schedules itself again and again.
        """
        if self.all_idle and not self._turn_scheduled and self._clock() < self._poll_end:
            if hasattr(os, "sched_yield"):
                os.sched_yield()  # another process that waits for this core, perhaps a client, runs first
            loop.call_soon(self.busy_poll, loop)

    def _check_speed(self, finished: FinishedBatch) -> None:
        """Starts a cooldown (`InlineRule`) for a model whose batch was predicted to be short and was much slower."""
        planned, short_seconds = finished.planned, self._inline_seconds
        if planned.seconds <= short_seconds and finished.work_seconds > _SLOW_FACTOR * short_seconds:
            planned.queue.inline.start_cooldown(finished.work_seconds, self._clock())

    def _is_short(self, queue: ModelQueue) -> bool:
        """Whether the event loop may run the queue's next batch: see the module."""
        rule = queue.inline
        return rule.possible and rule.cooldown_end <= self._clock() and queue.fits(self._inline_seconds)
