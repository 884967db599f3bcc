"""What `GET /metrics` shows: the figures of a service, and of all processes that serve together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lengthwise.telemetry.families import Family
from lengthwise.telemetry.metrics import Bounds, Gauges, Metrics
from lengthwise.telemetry.snapshots import Snapshot, Total, without_zeros

if TYPE_CHECKING:
    from lengthwise.serving.service import Serving

T = TypeVar("T")


class ServiceFigures:
    """The metrics of a service; those of other workers are asked for through the parent."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._worker = worker = serving.worker
        shared: dict[str, Any] = {} if worker is None else {"shared": worker.counts, "forget": worker.forget}
        self.metrics = Metrics(self._gauges, self._bounds, self._families, **shared)
        self._counting = asyncio.Lock()

    async def exposition(self, accept: str) -> tuple[list[bytes], str]:
        """The body of `GET /metrics` in pieces, and its media type: of all processes that serve together."""
        metrics, total, forgotten = self.metrics, None, -1
        # A model that is forgotten meanwhile may be in `own` and in the parent's counts: then all is summed again.
        while self._worker is not None and forgotten != metrics.forgotten:
            own, encoded = await self._snapshots()
            total, forgotten = Total(), metrics.forgotten
            others = await self._worker.ask("metrics", encoded)  # sent before it is shown: nothing is lost
            for snapshot in [own, *others]:
                await self._count(partial(total.add, snapshot))
        pieces, media_type = metrics.exposition(accept, total)
        return await self._each(pieces), media_type

    async def snapshot(self) -> Snapshot:
        """The snapshot of this process, as it is sent to another one."""
        return (await self._snapshots())[1]

    async def _snapshots(self) -> tuple[Snapshot, Snapshot]:
        """The snapshot of this process, and a copy without zeros to send to another process.

        Both are made again where a model was forgotten meanwhile: the parent has its counts by then.
        """
        forgotten, own, encoded = -1, Snapshot(), Snapshot()
        while forgotten != self.metrics.forgotten:
            forgotten = self.metrics.forgotten
            families = await self._each(self.metrics.families())
            own = await self._count(partial(self.metrics.snapshot, families))
            encoded = await self._count(partial(without_zeros, own))
        return own, encoded

    async def _each(self, parts: Iterator[T]) -> list[T]:
        """The items of an iterator, each of which is computed by a `_count` of its own."""
        each = list[T]()
        while (part := await self._count(partial(next, parts, None))) is not None:
            each.append(part)
        return each

    async def _count(self, work: Callable[[], T]) -> T:
        """Does a part of a scrape in a thread, one at a time, of a few milliseconds: then the event loop has a turn."""
        async with self._counting:
            return await asyncio.to_thread(work)

    def _gauges(self) -> dict[tuple[str, str], Gauges]:
        """The gauges of each model, summed over its queues: that of a removed model may still have work."""
        serving, ready = self._serving, self._serving.ready
        works = {served.metrics.labels: ready and not served.queue.breaker.open for served in serving.served}
        gauges = {labels: Gauges(0, 0, 0, each) for labels, each in works.items()}
        for queue in serving.batcher.queues:  # also of removed models, while anything waits or runs there
            labels = queue.metrics.labels
            before = gauges.get(labels, Gauges(0, 0, 0, False))
            gauges[labels] = Gauges(
                before.queue_cost_steps + queue.padded_steps,
                before.queue_sequences + len(queue.pending),
                before.inflight_batches + queue.inflight,
                before.ready,
                before.breaker_open or (queue.breaker.open and not queue.closed),
                before.queue_seconds + queue.seconds / serving.batcher.admission.rate.value,
            )
        return gauges or {("", ""): Gauges(0, 0, 0, False)}

    def _families(self) -> Iterator[Family]:
        """The families of aliases, default versions and worker restarts, of openings, and of the monitoring."""
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
        of_name = {name: serving.default_of(name) for name in {model.manifest.name for model in served}}
        default = [(model.metrics.labels, of_name[model.manifest.name] is model) for model in served]
        help_ = "1 for the version that a call without a version gets, else 0."
        yield Family("gauge", "largest", "default_version", help_, labels, default)

    def _bounds(self) -> Bounds:
        """The gauges of the process, and its limits."""
        serving, settings = self._serving, self._serving.settings
        return Bounds(
            runners=serving.runners,
            max_queue_cost_steps=settings.max_queue_cost_steps,
            refused_models=len(serving.repository.refused),
            inflight_bytes=serving.inflight.bytes,
            max_inflight_bytes=serving.inflight.max_bytes,
            max_queue_seconds=serving.batcher.admission.most_wait_seconds,
        )
