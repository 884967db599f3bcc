"""The batches that run, when they end by prediction, and when the next batch of a device is planned.

That is as late as it can be, so that the device does not wait for it. A device runs one batch at a time. While it
does, the next batch is made ready by another runner. Planned at once, that batch would have the few sequences that wait
now, and then wait for the device. Planned shortly before the device is free, it also has the sequences that arrive
until then; on a device, further rows cost next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lengthwise.telemetry.metrics import ModelMetrics

_FIRST_SECONDS: Final = 0.001  # of the preparation of a batch, before one was measured
_PLANNING_SECONDS: Final = 0.0005  # at most, with thousands that wait (`benchmarks.devices`), and to wake a runner
_MARGIN: Final = 2.0  # a preparation may take so many times longer than the last ones
_LEARNING: Final = 0.1  # share of the newest preparation in the average


@dataclass(slots=True, eq=False)
class Run:
    """A batch that runs, or is made ready."""

    name: str  # of its model
    rows: int
    width: int  # in steps
    seconds: float  # predicted, as if all sequences were as long as the longest
    metrics: ModelMetrics  # of its model
    end: float = -float("inf")  # predicted, on the batcher's clock; a run that no request waits for has none

    def __str__(self) -> str:
        return f"a batch of {self.name} ({self.rows} rows of {self.width} steps, predicted {self.seconds:.3g} s)"


class DeviceTurns:
    """The batches that run; all methods need the batcher's lock, which is held.

    No batch waits with `devices` 0, as on the CPU, nor with several: a session chooses the device of a batch when that
    runs, so a batch that waited for one device might be given to another. `clock` is the batcher's, in seconds.
    """

    def __init__(self, lock: threading.Lock, devices: int, clock: Callable[[], float]) -> None:
        self.one_device = devices == 1  # so that the batches wait for each other
        self._clock = clock
        self._ended = threading.Condition(lock)  # a batch has ended
        # By thread id, the first that began is the first; the watchdog and the live view read it without the lock
        self.running: dict[int, Run] = {}
        self._last_end = -float("inf")
        self._preparation_seconds = _FIRST_SECONDS  # average, from the plan of a batch to the begin of its run

    def rests(self, runners: int) -> list[float]:
        """The predicted seconds until each of so many runners is free, or the one device is.

        0 for one without a batch, and where the cost table has failed.
        """
        rests = [max(0.0, run.end - self._clock()) for run in self.running.values() if run.end < float("inf")]
        return [max(rests, default=0.0)] if self.one_device else [0.0] * (runners - len(rests)) + rests

    def seconds_to_wait(self) -> float:
        """How long the plan of the next batch may still wait, in seconds; 0 or less: it is time."""
        if not (self.one_device and self.running):
            return 0.0
        return self._last_predicted() - _MARGIN * self._preparation_seconds - _PLANNING_SECONDS - self._clock()

    def wait(self, seconds: float) -> None:
        """Waits so long, or until a batch has ended; the lock is free meanwhile.

        `seconds` may be infinite, where the cost table fails.
        """
        self._ended.wait(min(seconds, threading.TIMEOUT_MAX))

    def _last_predicted(self) -> float:
        """When the last of the batches that run ends, by prediction, on the batcher's clock; 0 without any."""
        return max((run.end for run in self.running.values()), default=0.0)

    def begin(self, run: Run, seconds: float) -> None:
        """Notes that this thread makes a batch ready, whose run is predicted to take so many seconds."""
        run.end = seconds + (max(self._clock(), self._last_predicted()) if self.one_device else self._clock())
        self.running[threading.get_ident()] = run

    def end(self, time: float, preparation_seconds: float) -> float:
        """Notes that this thread's batch ended at `time`, and how long its preparation took.

        Returns the seconds since the batch before it ended: its run took no longer. Infinity where that is not known:
        on the CPU, and on several devices. A batch that ends before one that began earlier, as it failed or ran beside
        it, says nothing about the run of that one. A run that no request waits for is no batch.
        """
        thread = threading.get_ident()
        began_first = next((key for key, run in self.running.items() if run.end > -float("inf")), None) == thread
        if self.running.pop(thread, None) is None or not self.one_device:
            return float("inf")
        self._preparation_seconds += _LEARNING * (preparation_seconds - self._preparation_seconds)
        self._ended.notify_all()
        since_last = time - self._last_end
        if began_first:
            self._last_end = time
        return since_last
