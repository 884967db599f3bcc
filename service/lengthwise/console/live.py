"""The live view of batching: each batch that ran, the lengths that wait, and what the runners do.

    runner threads: a batch has run ── figures ──> kept batches ──> event loop: a frame now and then ──> each viewer

Only figures are shown: no id, value or answer, and nothing of a caller. While nobody looks, nothing here runs. A slow
viewer is sent fewer frames. All views end when the service drains.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.execution import FinishedBatch

log = logging.getLogger("lengthwise.live")

FRAMES_PER_SECOND: Final = 5
QUIET_SECONDS: Final = 1.0  # longest time between two frames, so that a viewer knows the service is there
MOST_VIEWERS: Final = 16
MOST_BATCHES: Final = 24  # that a frame shows one by one, the last ones; its sums are of all
MOST_LENGTHS: Final = 256  # that a frame shows of a batch, or of a queue
_KEPT_BATCHES: Final = 1024  # between two frames; of more, the first are not shown
_KEPT_LATENCIES: Final = 4096
_KEPT_FRAMES: Final = 2  # that wait for one viewer
_SAMPLE_SECONDS: Final = 0.04  # between two looks at the queue by runners; the fullest of a frame is shown
_OF_LOOP: Final = "event loop"


class SeenBatch(NamedTuple):
    """The figures of a batch that ran or failed."""

    model: str
    runner: str  # the thread
    start: float  # on the batcher's clock
    seconds: float  # of padding and inference
    predicted_seconds: float
    measured_seconds: float  # from plan to results, on the cost table's clock
    rows: int
    width: int
    valid_steps: int
    computed_steps: int  # valid ones, and padding if that is computed
    lengths: NDArray[np.int32] | None  # `[rows]`; None if it failed
    longest_wait_seconds: float


class Viewer:
    """One viewer: the frames that wait for it, and how many were left out since it took the last one (`missed`)."""

    def __init__(self) -> None:
        self.missed = 0
        self._frames: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False

    def offer(self, frame: bytes) -> None:
        """Adds a frame; of too many, the oldest is left out."""
        if len(self._frames) == _KEPT_FRAMES:
            self._frames.popleft()
            self.missed += 1
        self._frames.append(frame)
        self._changed.set()

    def end(self) -> None:
        """Ends the view."""
        self._ended = True
        self._changed.set()

    async def next(self) -> bytes | None:
        """The next frame; None if the view has ended."""
        while not self._frames and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return None if self._ended else self._frames.popleft()


class LiveView:
    """Watches a batcher while somebody looks."""

    def __init__(self, batcher: Batcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._batcher = batcher
        self._clock = clock
        self._viewers: set[Viewer] = set()
        self._frames: asyncio.Task[None] | None = None
        self._seen: deque[SeenBatch] = deque(maxlen=_KEPT_BATCHES)
        self._latencies: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._queue: list[dict[str, Any]] = []
        self._queue_length = 0
        self._sampled = 0.0

    @property
    def viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    @property
    def full(self) -> bool:
        """Whether there are as many viewers as there may be."""
        return len(self._viewers) >= MOST_VIEWERS

    def join(self) -> Viewer:
        """A new viewer; on the event loop. The caller passes it to `leave`."""
        viewer = Viewer()
        if self._batcher.draining:
            viewer.end()
            return viewer
        if not self._viewers:
            self._forget()
            self._batcher.execution.watch = self._watch
            self._frames = asyncio.get_running_loop().create_task(self._make_frames())
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Removes a viewer; with the last one, the watch ends."""
        viewer.end()
        self._viewers.discard(viewer)
        if not self._viewers:
            self._stop()

    def _stop(self) -> None:
        self._batcher.execution.watch = None
        if self._frames is not None and self._frames is not asyncio.current_task():
            self._frames.cancel()
        self._frames = None
        self._forget()

    def _forget(self) -> None:
        self._seen.clear()
        self._latencies.clear()
        self._queue, self._queue_length = [], 0

    def _watch(self, finished: FinishedBatch, waits: Sequence[float]) -> None:
        """Keeps the figures of a batch; called in the thread that ran it, before the cost table learns from it."""
        planned, batch = finished.planned, finished.batch
        rows, width = len(planned.sequences), planned.width
        valid = planned.valid_steps if batch is None else batch.valid_steps
        computed = batch.padded_steps if batch is not None and planned.queue.metrics.computes_padding else valid
        thread = threading.current_thread()
        self._seen.append(
            SeenBatch(
                planned.queue.name,
                _OF_LOOP if thread is threading.main_thread() else thread.name,
                finished.start,
                finished.seconds,
                planned.queue.predict(rows, width, planned.valid_steps),
                finished.work_seconds,
                rows if batch is None else batch.rows,
                width if batch is None else batch.width,
                valid,
                computed,
                None if batch is None else batch.lengths,
                max(waits),
            )
        )
        self._latencies.extend([wait + finished.seconds for wait in waits])
        if planned.queue.pending and self._clock() - self._sampled > _SAMPLE_SECONDS:
            self._sample()

    def _sample(self) -> None:
        self._sampled = self._clock()
        waiting = self._batcher.waiting_lengths(MOST_LENGTHS)
        total = sum(count for _, count, _ in waiting)
        if total >= self._queue_length:
            queues = [{"model": name, "sequences": count, "lengths": lengths} for name, count, lengths in waiting]
            self._queue, self._queue_length = queues, total

    async def _make_frames(self) -> None:
        before = self._clock()
        while not self._batcher.draining:
            await asyncio.sleep(1 / FRAMES_PER_SECOND)
            now = self._clock()
            self._sample()
            if self._seen or self._queue_length or now - before >= QUIET_SECONDS:
                frame = self._encoded(now, now - before)
                before = now
                for viewer in self._viewers:
                    viewer.offer(frame)
        for viewer in list(self._viewers):
            self.leave(viewer)

    def _encoded(self, now: float, seconds: float) -> bytes:
        """A frame as JSON; an empty object if it cannot be made, because the next one may be good."""
        try:
            return orjson.dumps(self._frame(now, seconds))
        except Exception:  # whatever it is, viewers keep their stream
            log.exception("a frame of the live view could not be made")
            return b"{}"

    def _frame(self, now: float, seconds: float) -> dict[str, Any]:
        seen = [self._seen.popleft() for _ in range(len(self._seen))]
        latencies = [self._latencies.popleft() for _ in range(len(self._latencies))]
        queue, self._queue, self._queue_length = self._queue, [], 0
        busy: dict[str, float] = {}
        for batch in seen:
            busy[batch.runner] = busy.get(batch.runner, 0.0) + batch.seconds
        p50, p99 = np.percentile(latencies, [50, 99]).tolist() if latencies else (None, None)
        return {
            "time": now,
            "seconds": seconds,
            "batches": [_described(batch) for batch in seen[-MOST_BATCHES:]],
            "totals": {
                "batches": len(seen),
                "failed": sum(batch.lengths is None for batch in seen),
                "rows": sum(batch.rows for batch in seen),
                "padded_steps": sum(batch.rows * batch.width for batch in seen),
                "valid_steps": sum(batch.valid_steps for batch in seen),
                "computed_steps": sum(batch.computed_steps for batch in seen),
                "predicted_seconds": sum(batch.predicted_seconds for batch in seen),
                "measured_seconds": sum(batch.measured_seconds for batch in seen),
            },
            "latency_seconds": {"p50": p50, "p99": p99},
            "queue": queue,
            "busy_seconds": busy,
            "running": self._running(),
            "runners": self._batcher.runners,
            "viewers": len(self._viewers),
        }

    def _running(self) -> list[dict[str, Any]]:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return [
            {
                "runner": names.get(thread, ""),
                "model": run.name,
                "rows": run.rows,
                "width": run.width,
                "predicted_seconds": run.seconds,
            }
            for thread, run in list(self._batcher.execution.runs.items())
        ]


def _described(batch: SeenBatch) -> dict[str, Any]:
    """A batch in a frame. Its lengths are sorted, so that they do not tell the order in which callers came."""
    shown = batch._asdict()
    if batch.lengths is not None:
        shown["lengths"] = sorted(batch.lengths.tolist(), reverse=True)[:MOST_LENGTHS]
    return shown
