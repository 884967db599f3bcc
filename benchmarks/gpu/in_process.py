"""The service without HTTP: its batcher, planner, session and scoring, under a closed or an open load of this process.

What is left out is the protocol alone. The load's own work happens in the same interpreter and is part of what is
measured.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.plan import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.padding import Steps
from lengthwise.repository.model import Model
from lengthwise.telemetry.metrics import ModelMetrics

_DRAIN_SECONDS = 20.0


@dataclass(frozen=True)
class Desk:
    """A model as it is served.

    Attributes:
        model: Proved and measured.
        limits: What one batch may be.
        runners: Batches in flight.
    """

    model: Model
    limits: BatchLimits
    runners: int = 2

    def model_queue(self, metrics: ModelMetrics) -> ModelQueue:
        """The model's queue, as the service makes it."""
        model = self.model
        return ModelQueue(
            "benchmark",
            model.answer,
            model.cost,
            metrics,
            self.limits.at_most(model.manifest.max_batch_rows),
            multiple=model.manifest.width_multiple,
            buckets=model.buckets,
        )

    def closed(self, sequences: Sequence[Steps], seconds: float, in_flight: int) -> dict[str, float]:
        """Sequences a second where so many are always on their way, and what their batches were."""
        return asyncio.run(self._closed(sequences, seconds, in_flight))

    def open(self, sequences: Sequence[Steps], moments: NDArray[np.float64], overtime: float) -> NDArray[np.float64]:
        """Seconds from the moment when each was due to its answer; NaN where it had none in time."""
        return asyncio.run(self._open(sequences, moments, overtime))

    async def _closed(self, sequences: Sequence[Steps], seconds: float, in_flight: int) -> dict[str, float]:
        batcher, queue, metrics = await self._start()
        load = _Closed(batcher, queue, sequences, seconds)
        await load.run(in_flight)
        elapsed = time.perf_counter() - load.start
        await batcher.drain(_DRAIN_SECONDS)
        if load.failed:
            raise RuntimeError(f"{load.failed} sequences failed, the first: {load.error!r}")
        return {"sequences_per_second": load.answered / elapsed, **batches(metrics)}

    async def _open(
        self, sequences: Sequence[Steps], moments: NDArray[np.float64], overtime: float
    ) -> NDArray[np.float64]:
        batcher, queue, _ = await self._start()
        answered = np.full(len(moments), np.nan)
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        waiting = _Waiting(answered, over)
        start = time.perf_counter()

        def submit(first: int, end: int) -> None:
            for number in range(first, end):
                steps = sequences[number % len(sequences)]
                batcher.submit(queue, [steps], _first, waiter=_Noted(number, waiting, start))

        feeder = threading.Thread(
            target=feed, args=(moments, start, lambda *span: loop.call_soon_threadsafe(submit, *span))
        )
        feeder.start()
        try:
            async with asyncio.timeout(float(moments[-1]) + overtime):
                await over.wait()
        except TimeoutError:
            pass
        await loop.run_in_executor(None, feeder.join)
        taken = answered - moments
        await batcher.drain(0.0 if np.isnan(taken).any() else _DRAIN_SECONDS)
        return taken

    async def _start(self) -> tuple[Batcher, ModelQueue, ModelMetrics]:
        metrics = ModelMetrics()
        queue = self.model_queue(metrics)
        batcher = Batcher(runners=self.runners, max_queue_cost_steps=1_000_000_000)
        await batcher.start()
        batcher.open(queue)
        return batcher, queue, metrics


class _Closed:
    """A closed load: whoever has its answer sends the next."""

    def __init__(self, batcher: Batcher, queue: ModelQueue, sequences: Sequence[Steps], seconds: float) -> None:
        self._batcher, self._queue, self._sequences = batcher, queue, sequences
        self._sent = self._under_way = 0
        self._over = asyncio.Event()
        self.answered = self.failed = 0
        self.error: BaseException | None = None
        self.start = time.perf_counter()
        self._end = self.start + seconds

    async def run(self, in_flight: int) -> None:
        """Until the time is over and every answer is there."""
        for _ in range(in_flight):
            self._submit()
        await self._over.wait()

    def _submit(self) -> None:
        steps = self._sequences[self._sent % len(self._sequences)]
        self._sent += 1
        self._under_way += 1
        self._batcher.submit(self._queue, [steps], _first, waiter=self)

    def done(self) -> bool:
        """Never: the same waiter stands for all sequences."""
        return False

    def set_result(self, _result: Any, /) -> None:
        """An answer."""
        self.answered += 1
        self._next()

    def set_exception(self, exception: BaseException, /) -> None:
        """No answer."""
        self.failed += 1
        self.error = self.error or exception
        self._next()

    def _next(self) -> None:
        self._under_way -= 1
        if time.perf_counter() < self._end and not self.failed:
            self._submit()
        elif not self._under_way:
            self._over.set()


class _Waiting:
    """The moments of answers, and an event for when all are there."""

    def __init__(self, answered: NDArray[np.float64], over: asyncio.Event) -> None:
        self._answered, self._left, self._over = answered, len(answered), over

    def note(self, number: int, moment: float) -> None:
        """One has its answer, or NaN in the place of a moment."""
        self._answered[number] = moment
        self._left -= 1
        if not self._left:
            self._over.set()


class _Noted:
    """One sequence's place in the results."""

    __slots__ = ("_number", "_start", "_waiting")

    def __init__(self, number: int, waiting: _Waiting, start: float) -> None:
        self._number, self._waiting, self._start = number, waiting, start

    def done(self) -> bool:
        """Not before it is told."""
        return False

    def set_result(self, _result: Any, /) -> None:
        """An answer."""
        self._waiting.note(self._number, time.perf_counter() - self._start)

    def set_exception(self, _exception: BaseException, /) -> None:
        """None."""
        self._waiting.note(self._number, float("nan"))


def feed(moments: NDArray[np.float64], start: float, submit: Callable[[int, int], object]) -> None:
    """Calls `submit(first, end)` for the sequences that are due, as they become so; the load's own thread."""
    sent = 0
    while sent < len(moments):
        now = time.perf_counter() - start
        due = int(np.searchsorted(moments, now, side="right"))
        if due > sent:
            submit(sent, due)
            sent = due
        else:
            time.sleep(max(0.0, float(moments[sent]) - now))


def batches(metrics: ModelMetrics) -> dict[str, float]:
    """What the batches were, on average."""
    count, steps = metrics.batch_rows.count, metrics.valid_steps + metrics.padding_steps
    return {
        "rows_per_batch": metrics.batch_rows.total / max(1, count),
        "padding_share": metrics.padding_steps / max(1, steps),
    }


def _first(results: list[Any], _timing: Any) -> Any:
    return results[0]
