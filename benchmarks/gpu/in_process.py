"""The service without HTTP: its batcher, planner, session and scoring, under a closed load of this process.

Only the protocol is left out. The load runs in the same interpreter, and its own work is part of what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lengthwise.batching.batcher import Batcher
from lengthwise.batching.limits import BatchLimits
from lengthwise.batching.queues import ModelQueue
from lengthwise.padding import Steps
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.registry import ServedModel
from lengthwise.telemetry.metrics import ModelMetrics

_DRAIN_SECONDS = 20.0
SWITCH_INTERVAL_SECONDS, YOUNG_OBJECTS = 0.0005, 10_000
"""Of the interpreter, as the service sets them (`processes.server`, which a bare machine cannot import)."""


@dataclass(frozen=True)
class InProcessService:
    """A model as it is served."""

    model: LoadedModel  # verified, with its costs
    limits: BatchLimits  # of one batch
    runners: int = 2  # batches in flight
    overlapping: bool = False  # whether a batch on a device is planned without waiting for the one that runs

    def queue(self, metrics: ModelMetrics) -> ModelQueue:
        """The model's queue, as the service makes it."""
        return ServedModel(self.model, metrics, self.limits).queue

    def closed(self, sequences: Sequence[Steps], seconds: float, in_flight: int) -> dict[str, float]:
        """Sequences a second with `in_flight` sequences always waiting or running, and the average batch."""
        return asyncio.run(self._closed(sequences, seconds, in_flight))

    async def _closed(self, sequences: Sequence[Steps], seconds: float, in_flight: int) -> dict[str, float]:
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        gc.set_threshold(YOUNG_OBJECTS)
        metrics = ModelMetrics()
        queue = self.queue(metrics)
        devices = int(self.model.session.bound and not self.overlapping)
        batcher = Batcher(runners=self.runners, devices=devices, max_queue_cost_steps=1_000_000_000)
        await batcher.start()
        batcher.open(queue)
        load = _ClosedLoad(batcher, queue, sequences, seconds)
        await load.run(in_flight)
        elapsed = time.perf_counter() - load.start
        await batcher.drain(_DRAIN_SECONDS)
        if load.failed:
            raise RuntimeError(f"{load.failed} sequences failed, the first: {load.error!r}")
        steps = metrics.number("steps", "valid") + metrics.number("steps", "padding")
        return {
            "sequences_per_second": load.answered / elapsed,
            "rows_per_batch": metrics.batch_rows.total / max(1, metrics.batch_rows.count),
            "padding_share": metrics.number("steps", "padding") / max(1, steps),
        }


class _ClosedLoad:
    """Each answer submits the next sequence, until the time is over."""

    def __init__(self, batcher: Batcher, queue: ModelQueue, sequences: Sequence[Steps], seconds: float) -> None:
        self._batcher, self._queue, self._sequences = batcher, queue, sequences
        self._sent = self._unanswered = 0
        self._over = asyncio.Event()
        self.answered = self.failed = 0
        self.error: BaseException | None = None
        self.start = time.perf_counter()
        self._end = self.start + seconds

    async def run(self, in_flight: int) -> None:
        """Returns when the time is over and every answer has come."""
        for _ in range(in_flight):
            self._submit()
        await self._over.wait()

    def _submit(self) -> None:
        steps = self._sequences[self._sent % len(self._sequences)]
        self._sent += 1
        self._unanswered += 1
        self._batcher.submit(self._queue, [steps], _first, waiter=self)

    def done(self) -> bool:
        """Always false: one waiter serves all sequences."""
        return False

    def set_result(self, _result: Any, /) -> None:
        """Counts an answer."""
        self.answered += 1
        self._next()

    def set_exception(self, exception: BaseException, /) -> None:
        """Counts an error."""
        self.failed += 1
        self.error = self.error or exception
        self._next()

    def _next(self) -> None:
        self._unanswered -= 1
        if time.perf_counter() < self._end and not self.failed:
            self._submit()
        elif not self._unanswered:
            self._over.set()


def _first(results: list[Any], _timing: Any) -> Any:
    return results[0]
