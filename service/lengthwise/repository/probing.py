"""Probes models whose batches fail: runs their golden sequences, at once and then on a schedule.

So no caller's request is used to find out whether a model works. The *breaker* of a model (`batching.breaker`) opens
when a probe fails: then requests are refused. It closes when a probe passes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from lengthwise.batching.queues import ModelQueue
from lengthwise.repository import verifier
from lengthwise.repository.loading import LoadedModel
from lengthwise.repository.registry import ServedModel
from lengthwise.repository.stopping import in_daemon_thread
from lengthwise.verification import golden

RETRY_SECONDS: Final = 10.0  # until a model that failed is tried again
log = logging.getLogger("lengthwise.probing")


@dataclass
class Probing:
    """Probes broken models every `RETRY_SECONDS`."""

    served: Callable[[], Sequence[ServedModel]]  # the models that are served now
    changed: Callable[[], Awaitable[None]]  # called when a model breaks, or works again
    _loop: asyncio.AbstractEventLoop | None = None  # while it probes, between `start` and `stop`
    _probes: dict[ServedModel, asyncio.Task[None]] = field(default_factory=dict)  # the tasks that run `_probe`

    def start(self) -> None:
        """Starts probing, on the running event loop."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Stops probing. The thread of a probe that runs is not waited for."""
        self._loop = None
        tasks = list(self._probes.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def begin_soon(self, queue: ModelQueue) -> None:
        """Has the event loop begin to probe the model of a queue, because its batches fail. Safe in any thread."""
        log.warning(
            "%d batches of %s failed in a row: its golden sequences are run", queue.breaker.failures, queue.name
        )
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed: the service has ended
                self._loop.call_soon_threadsafe(self._begin, queue)

    def _begin(self, queue: ModelQueue) -> None:
        """Starts a task that probes the model with this queue, unless one does already; on the event loop."""
        for served in self.served():
            if served.queue is queue and served not in self._probes and self._loop is not None:
                self._probes[served] = asyncio.create_task(self._probe(served))

    async def _probe(self, served: ServedModel) -> None:
        """Probes a model again and again, until its breaker is closed or the model is no longer served."""
        breaker, key = served.queue.breaker, served.manifest.key
        try:
            while not breaker.closed and served in self.served():
                try:
                    error = await self._probe_once(served)
                except Exception as raised:  # as where no thread starts: only another probe closes the breaker
                    log.exception("the probe of %s failed: it is tried again after %g s", key, RETRY_SECONDS)
                    error = raised
                if error is not None:
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            del self._probes[served]  # from now on `begin_soon` starts a new task

    async def _probe_once(self, served: ServedModel) -> Exception | None:
        """Probes a model once, and notes the result in its breaker; logs and calls `changed` if the breaker changes.

        Returns the error of the probe; None if it passed.
        """
        breaker, key = served.queue.breaker, served.manifest.key
        error = await asyncio.wrap_future(in_daemon_thread("probe", partial(probe, served.model, served.queue)))
        if breaker.probed(error, time.monotonic(), RETRY_SECONDS):
            if error is None:
                log.warning("%s works again: its golden sequences pass", key)
            else:
                message = "%s does not work (%s): requests for it are refused, and it is tried again every %g s"
                log.error(message, key, breaker.reason, RETRY_SECONDS)
            await self.changed()
        return error


def probe(model: LoadedModel, queue: ModelQueue) -> Exception | None:
    """Runs a model's golden sequences as its queue runs batches, and compares the logits with the stored ones.

    A model without golden sequences runs a sequence of zeros, and nothing is compared.

    Returns:
        Why the model does not work; None if it works.
    """
    try:
        sequences = (
            (verifier.constant_sequence(model.manifest, 0.0, model.manifest.min_length),)
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
