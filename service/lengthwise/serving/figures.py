"""What `GET /metrics` shows: the figures of a service, and of all processes that serve together (see `telemetry`).

A *snapshot* is the metrics of one process as plain data. A model is *forgotten* when its last counts have moved to the
parent of the workers: a sum that was begun before counts it twice, here and there, and is made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lengthwise.telemetry.families import Family
from lengthwise.telemetry.metrics import Bounds, Gauges, Metrics
from lengthwise.telemetry.snapshots import Snapshot, Total, without_zeros

if TYPE_CHECKING:
    from lengthwise.processes.worker import Worker
    from lengthwise.serving.service import Serving

T = TypeVar("T")


class ServiceFigures:
    """The metrics of a service; the metrics of other workers come from the parent."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._worker = worker = serving.worker
        shared: dict[str, Any] = {} if worker is None else {"shared": worker.counts, "forget": worker.forget}
        self.metrics = Metrics(self._gauges, self._bounds, self._families, **shared)
        self._counting = asyncio.Lock()  # held while a piece of work runs in a thread

    async def exposition(self, accept: str) -> tuple[list[bytes], str]:
        """Returns the body of `GET /metrics` in pieces, and its media type; of all processes that serve together."""
        total = None if self._worker is None else await self._sum(self._worker)
        pieces, media_type = self.metrics.exposition(accept, total)
        return await self._items(pieces), media_type

    async def _sum(self, worker: Worker) -> Total:
        """Returns the sum of the metrics of all processes; `worker` is this process.

        It is made again if a model was forgotten meanwhile.
        """
        while True:
            own_snapshot, nonzero = await self._snapshots()
            total, forgotten = Total(), self.metrics.forgotten
            # The parent gets these counts before they are shown, so that no later sum is smaller.
            other_snapshots = await worker.ask("metrics", nonzero)
            for snapshot in [own_snapshot, *other_snapshots]:
                await self._count(partial(total.add, snapshot))
            if forgotten == self.metrics.forgotten:
                return total

    async def snapshot(self) -> Snapshot:
        """Returns the snapshot of this process, without zeros, to send to another process."""
        _, nonzero = await self._snapshots()
        return nonzero

    async def _snapshots(self) -> tuple[Snapshot, Snapshot]:
        """Returns the snapshot of this process, and a copy without zeros to send to another process.

        Both are made again if a model was forgotten meanwhile.
        """
        while True:
            forgotten = self.metrics.forgotten
            snapshot = await self._count(partial(self.metrics.snapshot, await self._items(self.metrics.families())))
            nonzero = await self._count(partial(without_zeros, snapshot))
            if forgotten == self.metrics.forgotten:
                return snapshot, nonzero

    async def _items(self, parts: Iterator[T]) -> list[T]:
        """Takes all items of an iterator, each in a thread by itself (`_count`)."""
        items = list[T]()
        while (item := await self._count(partial(next, parts, None))) is not None:
            items.append(item)
        return items

    async def _count(self, work: Callable[[], T]) -> T:
        """Runs `work`, a few milliseconds of a scrape, in a thread; one at a time, so that the event loop has turns."""
        async with self._counting:
            return await asyncio.to_thread(work)

    def _gauges(self) -> dict[tuple[str, str], Gauges]:
        """Computes the gauges of each model, by its labels (name, version), summed over its queues.

        A removed model has gauges as long as requests wait or run in its queue.
        """
        serving, ready = self._serving, self._serving.ready
        gauges = {
            served.metrics.labels: Gauges(0, 0, 0, ready and not served.queue.breaker.open) for served in serving.served
        }
        for queue in serving.batcher.queues:
            labels = queue.metrics.labels
            so_far = gauges.get(labels, Gauges(0, 0, 0, False))
            gauges[labels] = Gauges(
                so_far.queue_cost_steps + queue.padded_steps,
                so_far.queue_sequences + len(queue.pending),
                so_far.inflight_batches + queue.inflight,
                so_far.ready,
                so_far.breaker_open or (queue.breaker.open and not queue.closed),
                so_far.queue_seconds + queue.seconds / serving.batcher.admission.rate.value,
            )
        return gauges or {("", ""): Gauges(0, 0, 0, False)}  # without a model the metrics are on the page, too

    def _families(self) -> Iterator[Family]:
        """Yields the families of openings, worker restarts, monitoring, aliases and default versions."""
        serving = self._serving
        yield from serving.openings.families()
        restarts = 0 if self._worker is None else self._worker.restarts
        yield Family("counter", "largest", "worker_restarts", "Workers that were replaced.", (), [((), restarts)])
        if serving.monitoring is not None:
            yield from serving.monitoring.families()
        labels, served = ("model", "version"), serving.served
        aliases = [((*model.metrics.labels, alias), 1) for model in served for alias in serving.aliases_of(model)]
        help_ = "Always 1; the aliases of each version."
        yield Family("gauge", "largest", "model_alias", help_, (*labels, "alias"), aliases)
        default_by_name = {name: serving.default_of(name) for name in {model.manifest.name for model in served}}
        defaults = [(model.metrics.labels, default_by_name[model.manifest.name] is model) for model in served]
        help_ = "1 for the version that a call without a version gets, else 0."
        yield Family("gauge", "largest", "default_version", help_, labels, defaults)

    def _bounds(self) -> Bounds:
        """Computes the gauges of the process, over all models, and its limits."""
        serving, settings = self._serving, self._serving.settings
        return Bounds(
            runners=serving.runners,
            max_queue_cost_steps=settings.max_queue_cost_steps,
            refused_models=len(serving.repository.refused),
            inflight_bytes=serving.inflight.bytes,
            max_inflight_bytes=serving.inflight.max_bytes,
            max_queue_seconds=serving.batcher.admission.most_wait_seconds,
        )
