"""Runs the golden sequences of models whose batches fail, at once and then on a schedule: no caller's request does."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from lengthwise.batching.queues import ModelQueue
from lengthwise.repository import judging
from lengthwise.repository.model import LoadedModel
from lengthwise.repository.registry import in_daemon_thread
from lengthwise.repository.served import ServedModel
from lengthwise.verification import golden

log = logging.getLogger("lengthwise.probing")


class Probing:
    """Probes models every `retry_seconds` until they work again; `changed` is called when one stops or works again."""

    def __init__(
        self,
        served: Callable[[], Sequence[ServedModel]],
        retry_seconds: float,
        changed: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._served = served
        self._retry_seconds = retry_seconds
        self._changed = changed
        self._clock = clock
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._running: set[ServedModel] = set()
        self._probes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Starts probing, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._probe_all())

    async def stop(self) -> None:
        """Ends it. A probe that runs is left to its thread."""
        tasks = [task for task in (self._task, *self._probes) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def ask(self, queue: ModelQueue) -> None:
        """Probes a model soon, because its batches fail. Called in any thread."""
        log.warning(
            "%d batches of %s failed in a row: its golden sequences are run", queue.breaker.failures, queue.name
        )
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed: the service has ended
                self._loop.call_soon_threadsafe(self._wanted.set)

    async def _probe_all(self) -> None:
        while True:
            now = self._clock()
            waits = []
            for served in self._served():
                breaker = served.queue.breaker
                if breaker.closed or served in self._running:
                    continue
                if breaker.probe_time <= now:
                    self._running.add(served)
                    task = asyncio.create_task(self._probe(served))
                    self._probes.add(task)
                    task.add_done_callback(self._probes.discard)
                else:
                    waits.append(breaker.probe_time - now)
            try:
                async with asyncio.timeout(min(waits, default=None)):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            self._wanted.clear()

    async def _probe(self, served: ServedModel) -> None:
        queue, key = served.queue, served.manifest.key
        error = await in_daemon_thread(partial(probe, served.model, queue))
        self._running.discard(served)
        if queue.breaker.probed(error, self._clock(), self._retry_seconds):
            if error is None:
                log.warning("%s works again: its golden sequences pass", key)
            else:
                log.error(
                    "%s does not work (%s): requests for it are refused, and it is tried again every %g s",
                    key,
                    queue.breaker.reason,
                    self._retry_seconds,
                )
            await self._changed()
        self._wanted.set()


def probe(model: LoadedModel, queue: ModelQueue) -> Exception | None:
    """Runs a model's golden sequences as its batches are run, and compares their logits; returns why it is broken."""
    try:
        sequences = (
            (judging.constant_sequence(model.manifest, 0.0, model.manifest.min_length),)
            if model.golden is None
            else model.golden.sequences
        )
        for steps in sequences:
            queue.run(queue.padded([steps]), False)
        if model.golden is not None:
            golden.check(model.session, model.golden, model.manifest, model.promise)
    except Exception as error:  # onnxruntime's errors have no common base
        return error.with_traceback(None)
    return None
