"""The monitoring of a service: its consumers, their buffers and threads, and their metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from lengthwise.batching.queues import Timing
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError
from lengthwise.monitoring.consumers import AnsweredCall, AtRest, CallBuffer, Consumer, ConsumerThread
from lengthwise.monitoring.drift import Drift
from lengthwise.monitoring.recorder import Recorder
from lengthwise.monitoring.shadow import Shadow
from lengthwise.monitoring.verify import AnswerCheck
from lengthwise.repository.served import ServedModel
from lengthwise.runtime.answers import Answer
from lengthwise.settings import Settings
from lengthwise.telemetry.families import Family
from lengthwise.versions import Key

log = logging.getLogger("lengthwise.monitoring")

_COUNTED: int = 64  # calls of one turn: little enough that no thread waits long for the interpreter
_STOP_SECONDS = 10.0


class Monitoring:
    """Everything that samples answered calls; `at_rest`: no caller waits for a model."""

    def __init__(
        self, settings: Settings, at_rest: AtRest, find: Callable[[str | None, str | None], ServedModel]
    ) -> None:
        self._find = find
        counting: list[Consumer] = []
        rerunning: list[Consumer] = []
        self.shadow: Shadow | None = None
        if settings.drift_share > 0:
            counting.append(Drift(settings.drift_share, self._is_served))
        if settings.record is not None and settings.record_share > 0:
            counting.append(Recorder(settings.record, settings.record_share, settings.record_max_bytes))
        if settings.verify_share > 0:
            rerunning.append(AnswerCheck(settings.verify_share))
        if settings.shadow is not None:
            key = Key.parse(settings.shadow)
            self.shadow = Shadow(lambda: find(key.name, str(key.version)), key, settings.shadow_share)
            rerunning.append(self.shadow)
        self._buffers = [CallBuffer(consumer) for consumer in (*counting, *rerunning)]
        self._threads = []
        if counting:
            self._threads.append(ConsumerThread("monitoring", self._buffers[: len(counting)], _COUNTED))
        if rerunning:
            self._threads.append(ConsumerThread("reruns", self._buffers[len(counting) :], 1, at_rest))

    def _is_served(self, name: str, version: str) -> bool:
        try:
            self._find(name, version)
        except RequestError:
            return False
        return True

    def start(self) -> None:
        """Starts the threads, and logs what an option has switched on."""
        for buffer in self._buffers:
            if isinstance(buffer.consumer, Drift):  # on by default
                continue
            log.info("%s: a share of %g of the calls is sampled", buffer.consumer.name, buffer.consumer.share)
        for thread in self._threads:
            thread.start()

    def log_absent_shadow(self) -> None:
        """Logs a warning if there is a shadow and its version is not served."""
        if self.shadow is not None:
            self.shadow.served()

    def stop(self) -> None:
        """Stops the threads, and writes what was sampled."""
        for thread in self._threads:
            thread.stop(_STOP_SECONDS)

    def answered(
        self, call: Call, answers: Sequence[Answer], timing: Timing, *, request_id: bytes, arrived: float
    ) -> None:
        """Offers an answered call to all consumers; in the thread that answers it."""
        if not self._buffers:
            return
        found = AnsweredCall(
            call.model,
            call.items,
            answers,
            request_id.decode(),
            time.time() - (time.monotonic() - arrived),
            timing.queue,
            timing.inference,
            call.held_bytes,
        )
        for buffer in self._buffers:
            buffer.offer(found)

    def families(self) -> Iterator[Family]:
        """The metrics of all consumers, and what they dropped."""
        for buffer in self._buffers:
            yield from buffer.consumer.families()
        yield Family(
            "counter",
            "monitoring_dropped_calls",
            "Sampled calls that were dropped because the consumer was too slow or failed.",
            ("consumer",),
            [((buffer.consumer.name,), buffer.dropped) for buffer in self._buffers],
        )
