"""The live view of batching: each batch that ran, the lengths that wait, and what the runners do.

    runner threads: a batch has run ── figures ──> kept batches ──> event loop: a frame now and then ──> each viewer

A *frame* is a JSON object with what happened since the last one. It has figures only: no id, value or answer, and
nothing of a caller. While there is no viewer, nothing here runs. A slow viewer misses frames. All views end when the
service drains.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import orjson
from starlette.responses import StreamingResponse
from starlette.types import Send

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.execution import FinishedBatch
from lengthwise.connections.unread import PATIENCE_SECONDS

log = logging.getLogger("lengthwise.live")

FRAMES_PER_SECOND: Final = 5
QUIET_SECONDS: Final = 1.0  # longest time between two frames, so that a viewer knows the service is there
MOST_VIEWERS: Final = 16
MOST_BATCHES: Final = 24  # the last ones, which a frame shows one by one; its totals are of all batches
MOST_LENGTHS: Final = 256  # of a batch, or of a queue, that a frame shows
_MOST_QUEUED_BATCHES: Final = 1024  # kept between two frames; of more batches, the first are dropped
_MOST_LATENCIES: Final = 4096  # kept between two frames
_MOST_QUEUED_FRAMES: Final = 2  # that wait for one viewer
_SAMPLE_SECONDS: Final = 0.04  # between two samples of the queue by runners; a frame shows the longest sample
_OF_LOOP: Final = "event loop"  # as the runner of a batch that the event loop ran
_ADDED: Final = ("rows", "valid_steps", "computed_steps", "predicted_seconds", "measured_seconds")  # summed for totals
# A view lasts so long; then the page opens the next one. A viewer that does not read any more opens none. There is no
# other sign of it: a quiet service writes so little that the viewer's system can buffer it for hours.
VIEW_SECONDS: Final = PATIENCE_SECONDS
MEDIA_TYPE: Final = "text/event-stream"
_HEAD: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),  # an idle connection would delay the end of the service
        (b"x-accel-buffering", b"no"),  # otherwise nginx collects frames
        (b"x-content-type-options", b"nosniff"),
    ],
}


class Viewer(asyncio.Queue[bytes | None]):
    """The frames that wait to be sent to one viewer; None ends its view."""

    missed = 0  # frames that were dropped since it took the last one

    def offer(self, frame: bytes | None) -> None:
        """Adds a frame; if the queue is full, the oldest frame is dropped."""
        if self.full():
            self.get_nowait()
            self.missed += 1
        self.put_nowait(frame)


class LiveView:
    """Watches a batcher while there are viewers, and makes the frames for them."""

    def __init__(self, batcher: Batcher, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepares the view of a batcher; the watch begins with the first viewer."""
        self._batcher = batcher
        self._clock = clock
        self._viewers: set[Viewer] = set()
        self._frames: asyncio.Task[None] | None = None  # makes the frames
        # Since the last frame: figures of batches, latencies of sequences in seconds, the longest sample of the queue
        self._batches: deque[dict[str, Any]] = deque(maxlen=_MOST_QUEUED_BATCHES)
        self._latencies: deque[float] = deque(maxlen=_MOST_LATENCIES)
        self._queue: list[dict[str, Any]] = []
        self._queue_length = 0  # sequences in that sample
        self._sampled = 0.0  # when the queue was sampled last, on the clock

    @property
    def viewers(self) -> int:
        """How many viewers there are."""
        return len(self._viewers)

    def join(self) -> Viewer:
        """Adds a viewer, whose frames the caller then gets from it; later, the caller passes it to `leave`.

        The first viewer starts the watch of batches. Runs on the event loop. If the service drains, the viewer's view
        has ended already.
        """
        viewer = Viewer(_MOST_QUEUED_FRAMES)
        if self._batcher.draining:
            viewer.offer(None)
            return viewer
        if not self._viewers:
            self._forget()
            self._batcher.execution.watch = self._watch
            self._frames = asyncio.get_running_loop().create_task(self._make_frames())
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Ends the view of a viewer, and removes it; with the last viewer, the watch of batches ends, too."""
        viewer.offer(None)
        self._viewers.discard(viewer)
        if self._viewers:
            return
        self._batcher.execution.watch = None
        if self._frames is not None and self._frames is not asyncio.current_task():
            self._frames.cancel()
        self._frames = None
        self._forget()

    def _forget(self) -> None:
        """Clears the figures that were kept for the next frame."""
        self._batches.clear()
        self._latencies.clear()
        self._queue, self._queue_length = [], 0

    def _watch(self, finished: FinishedBatch, waits: Sequence[float]) -> None:
        """Keeps the figures of a batch for the next frame; sometimes samples the queue, too.

        Called in the thread that ran the batch, before the cost table learns from it: so the figures have the seconds
        that were predicted. `waits`: how long each sequence of the batch waited, in seconds.
        """
        planned, batch = finished.planned, finished.batch
        # A batch that failed (None) has the figures of its plan.
        rows, width = len(planned.sequences), planned.width
        valid_steps = planned.valid_steps if batch is None else batch.valid_steps
        thread = threading.current_thread()
        figures = {
            "model": planned.queue.name,
            "runner": _OF_LOOP if thread is threading.main_thread() else thread.name,
            "start": finished.start,  # on the batcher's clock
            "seconds": finished.seconds,  # of padding and inference
            "predicted_seconds": planned.queue.predict(rows, width, planned.valid_steps),
            "measured_seconds": finished.work_seconds,  # from plan to results, on the cost table's clock
            "rows": rows if batch is None else batch.rows,
            "width": width if batch is None else batch.width,
            "valid_steps": valid_steps,
            # Valid ones, and as many as cost what the padding costs
            "computed_steps": valid_steps
            + planned.queue.cost.padding_cost * (0 if batch is None else batch.padded_steps - valid_steps),
            "lengths": None if batch is None else batch.lengths,  # `[rows]`; None if it failed
            "longest_wait_seconds": max(waits),
        }
        self._batches.append(figures)
        self._latencies.extend([wait + finished.seconds for wait in waits])
        if planned.queue.pending and self._clock() - self._sampled > _SAMPLE_SECONDS:
            self._sample()

    def _sample(self) -> None:
        """Samples the lengths that wait, of each queue; keeps the sample if it is the longest since the last frame."""
        self._sampled = self._clock()
        waiting = self._batcher.waiting_lengths(MOST_LENGTHS)
        total = sum(count for _, count, _ in waiting)
        if total >= self._queue_length:
            queues = [{"model": name, "sequences": count, "lengths": lengths} for name, count, lengths in waiting]
            self._queue, self._queue_length = queues, total

    async def _make_frames(self) -> None:
        """Offers a frame to every viewer again and again, until the service drains; then ends all views.

        There are `FRAMES_PER_SECOND` while something happens, otherwise one in `QUIET_SECONDS`.
        """
        last_frame = self._clock()
        while not self._batcher.draining:
            await asyncio.sleep(1 / FRAMES_PER_SECOND)
            now = self._clock()
            self._sample()
            if self._batches or self._queue_length or now - last_frame >= QUIET_SECONDS:
                try:
                    frame = orjson.dumps(self._frame(now, now - last_frame))
                except Exception:  # viewers keep their stream: the next frame may be good
                    log.exception("a frame of the live view could not be made")
                    frame = b"{}"
                last_frame = now
                for viewer in self._viewers:
                    viewer.offer(frame)
        for viewer in list(self._viewers):
            self.leave(viewer)

    def _frame(self, now: float, seconds: float) -> dict[str, Any]:
        """Makes a frame of the figures that were kept since the last frame, and removes them.

        `now` is the time on the clock, `seconds` how long the last frame is ago.
        """
        batches = [self._batches.popleft() for _ in range(len(self._batches))]
        latencies = [self._latencies.popleft() for _ in range(len(self._latencies))]
        queue, self._queue, self._queue_length = self._queue, [], 0
        busy: dict[str, float] = {}
        for batch in batches:
            busy[batch["runner"]] = busy.get(batch["runner"], 0.0) + batch["seconds"]
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        p50, p99 = np.percentile(latencies, [50, 99]).tolist() if latencies else (None, None)
        return {
            "time": now,
            "seconds": seconds,
            "batches": [_batch_for_frame(batch) for batch in batches[-MOST_BATCHES:]],
            "totals": {
                "batches": len(batches),
                "failed": sum(batch["lengths"] is None for batch in batches),
                "padded_steps": sum(batch["rows"] * batch["width"] for batch in batches),
                **{name: sum(batch[name] for batch in batches) for name in _ADDED},
            },
            "latency_seconds": {"p50": p50, "p99": p99},
            "queue": queue,
            "busy_seconds": busy,
            "running": [
                {
                    "runner": names.get(thread, ""),
                    "model": run.name,
                    "rows": run.rows,
                    "width": run.width,
                    "predicted_seconds": run.seconds,
                }
                for thread, run in list(self._batcher.execution.turns.running.items())
            ],
            "runners": self._batcher.runners,
            "viewers": len(self._viewers),
        }


def _batch_for_frame(batch: dict[str, Any]) -> dict[str, Any]:
    """Sorts the lengths in the figures of a batch, and cuts them to `MOST_LENGTHS`; returns new figures.

    Lengths in their order would tell in which order the callers came. A batch that failed has none.
    """
    if batch["lengths"] is None:
        return batch
    return {**batch, "lengths": sorted(batch["lengths"].tolist(), reverse=True)[:MOST_LENGTHS]}


class LiveStream(StreamingResponse):
    """Server-sent events, one for each frame, until the viewer leaves, its time is over, or the service drains."""

    def __init__(self, live: LiveView, viewer: Viewer) -> None:
        super().__init__(content=())  # `stream_response` sends the content
        self._live = live
        self._viewer = viewer

    async def stream_response(self, send: Send) -> None:
        """Sends frames until the view ends, and then, as the event `end`, the reason.

        The reason is `renew` after `VIEW_SECONDS`, otherwise `draining`. Starlette calls this method, and cancels it
        when the client leaves.
        """
        reason = b"draining"
        try:
            await send(_HEAD)
            async with asyncio.timeout(VIEW_SECONDS):
                await self._send_frames(send)
        except TimeoutError:
            reason = b"renew"
        finally:
            self._live.leave(self._viewer)
        await send({"type": "http.response.body", "body": b"event: end\ndata: %s\n\n" % reason, "more_body": False})

    async def _send_frames(self, send: Send) -> None:
        """Sends each frame of the viewer as an event; returns when the view has ended.

        Before a frame, the event `missed` says how many frames were dropped since the last one, if any was.
        """
        viewer = self._viewer
        await send(_part(b": one event a frame\n\n"))
        while (frame := await viewer.get()) is not None:
            missed, viewer.missed = viewer.missed, 0
            missed_event = b"event: missed\ndata: %d\n\n" % missed if missed else b""
            await send(_part(b"%sevent: frame\ndata: %s\n\n" % (missed_event, frame)))


def _part(data: bytes) -> dict[str, object]:
    """The message of ASGI for a part of the body."""
    return {"type": "http.response.body", "body": data, "more_body": True}
