"""Watches the runs of batches and the event loop, from a thread of its own.

| what | is |
|---|---|
| a run that takes `OVERDUE_FACTOR` times as long as predicted | logged once, and counted |
| a run that takes that long, and longer than `hung_seconds` | hung: the process cannot heal itself, `/livez` fails |
| an event loop that runs nothing for `hung_seconds` | logged with its stack; it cannot answer `/livez` |

A *look* is one check, every `LOOK_SECONDS`. Time is counted in looks, not by a clock: while the whole process is
stopped, nothing becomes late.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lengthwise.batching.device_turns import Run

log = logging.getLogger("lengthwise.watchdog")

OVERDUE_FACTOR: Final = 50  # how many times its predicted seconds a run may take
_OVERDUE_SECONDS: Final = 5.0  # shorter runs are never overdue: a busy machine may delay them by far
LOOK_SECONDS: Final = 0.5  # time between two looks


@dataclass(eq=False)
class Watchdog:
    """Looks at the runs and at the event loop, in a thread of its own."""

    runs: Mapping[int, Run]  # by thread id: `DeviceTurns.running`
    hung_seconds: float
    # By thread: the run of the last look, and how many looks saw it
    _looks: dict[int, tuple[Run, int]] = field(default_factory=dict, init=False)
    _hung: Run | None = field(default=None, init=False)  # a run that hung at the last look
    _loop_looks: int = field(default=0, init=False)  # looks since the event loop ran something
    _loop_thread: int = field(default=0, init=False)  # the id of the event loop's thread
    # Set when the event loop runs the function that a look scheduled
    _answered: threading.Event = field(default_factory=threading.Event, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    @property
    def problem(self) -> str | None:
        """Why the process cannot heal itself, for people; None if it can."""
        hung = self._hung
        return None if hung is None else f"{hung} has run for more than {self.hung_seconds:g} s"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread; called on the event loop."""
        self._loop_thread = threading.get_ident()
        self._answered.set()
        self._thread = threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            self.look_at_runs()
            self.look_at_loop(loop.call_soon_threadsafe)

    def look_at_runs(self) -> None:
        """Looks at the runs once: counts and logs those that have just become overdue, and notes whether one hangs."""
        last_looks, self._looks = self._looks, {}
        hung = None
        for thread, run in list(self.runs.items()):
            last_run, looks = last_looks.get(thread, (run, 0))
            looks = looks + 1 if last_run is run else 1
            self._looks[thread] = (run, looks)
            seconds, allowed = looks * LOOK_SECONDS, max(OVERDUE_FACTOR * run.seconds, _OVERDUE_SECONDS)
            if seconds - LOOK_SECONDS <= allowed < seconds:  # overdue now, and not yet at the last look
                run.metrics.count("overdue_batches")
                log.warning("%s has run for %.3g s", run, seconds)
            if seconds > max(allowed, self.hung_seconds):
                hung = run
        if hung is not None and self._hung is None:
            log.critical("%s hangs, and no thread can be ended; /livez fails from now on", hung)
        elif hung is None and self._hung is not None:
            log.warning("the run reported as hung has finished: %s", self._hung)
        self._hung = hung

    def look_at_loop(self, call: Callable[[Callable[[], None]], object]) -> None:
        """Looks at the event loop once: logs if it has run nothing for `hung_seconds`, and when it runs again.

        A look schedules a function on the event loop; the next look sees whether the function has run.

        Args:
            call: Schedules a function on the event loop: `call_soon_threadsafe`.
        """
        # 1. The function of an earlier look has run: schedule it again.
        if self._answered.is_set():
            if self._loop_looks * LOOK_SECONDS > self.hung_seconds:
                log.warning("the event loop runs again")
            self._loop_looks = 0
            self._answered.clear()
            with suppress(RuntimeError):  # the event loop is closed
                call(self._answered.set)
        # 2. It has not run: log that once, at the first look after `hung_seconds`.
        else:
            self._loop_looks += 1
            if self._loop_looks * LOOK_SECONDS > self.hung_seconds >= (self._loop_looks - 1) * LOOK_SECONDS:
                frame = sys._current_frames().get(self._loop_thread)
                stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown"
                log.critical("the event loop has run nothing for %.3g s; its stack:\n%s", self.hung_seconds, stack)
