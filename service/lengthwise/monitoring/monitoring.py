"""The monitoring of a service: its consumers, their buffers and threads, and their metrics.

Consumers run in the thread `monitoring` (counting, writing) or `reruns` (models, at rest only). The thread that answers
only puts a call into the bounded buffers of those that sample it; when one is too slow, calls are dropped and counted,
and no caller waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from lengthwise.batching.queues import Timing
from lengthwise.decoding.calls import Call
from lengthwise.errors import RequestError
from lengthwise.monitoring.consumers import AnsweredCall, AtRest, Consumer
from lengthwise.monitoring.drift import Drift
from lengthwise.monitoring.recorder import Recorder
from lengthwise.monitoring.shadow import Shadow
from lengthwise.monitoring.verify import AnswerCheck
from lengthwise.repository.served import ServedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import Answer
from lengthwise.settings import Settings
from lengthwise.telemetry.families import Family
from lengthwise.versions import Key

log = logging.getLogger("lengthwise.monitoring")

MOST_CALLS: Final = 4096
MOST_BYTES: Final = 32 * 2**20  # what one buffer holds at most
PERIOD_SECONDS: Final = 0.2  # how long calls gather, so that a thread that answers is seldom disturbed
_REST_SECONDS: Final = 0.002  # to the next look if runners are at rest; then twice, up to `PERIOD_SECONDS`
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


class CallBuffer:
    """The calls that wait for one consumer, within bounds."""

    def __init__(self, consumer: Consumer, most_calls: int = MOST_CALLS, most_bytes: int = MOST_BYTES) -> None:
        self.consumer = consumer
        self.dropped = 0  # the consumer was too slow, or failed
        self.arrived = threading.Event()  # shared by the buffers of a thread
        self._most_calls = most_calls
        self._most_bytes = most_bytes
        self._calls: deque[AnsweredCall] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._calls)

    def offer(self, call: AnsweredCall) -> None:
        """Samples a call: puts it into the buffer if chance, the consumer and the bounds allow it."""
        consumer = self.consumer
        if (consumer.share < 1 and random.random() >= consumer.share) or not consumer.wants(call):
            return
        with self._lock:
            if len(self._calls) < self._most_calls and self._bytes + call.held_bytes <= self._most_bytes:
                self._calls.append(call)
                self._bytes += call.held_bytes
            else:
                self.dropped += 1
        if not self.arrived.is_set():
            self.arrived.set()

    def take(self, most: int) -> list[AnsweredCall]:
        """Removes and returns the oldest calls, at most so many."""
        with self._lock:
            taken = [self._calls.popleft() for _ in range(min(most, len(self._calls)))]
            self._bytes -= sum(call.held_bytes for call in taken)
        return taken

    def consume(self, most: int) -> bool:
        """Passes calls to the consumer; returns whether there were any. An error drops them and is logged."""
        calls = self.take(most)
        if not calls:
            return False
        try:
            self.consumer.consume(calls)
        except Exception:  # an error here must end neither the thread nor the service
            log.exception("%d answered calls could not be used for %s", len(calls), self.consumer.name)
            with self._lock:
                self.dropped += len(calls)
        return True


class ConsumerThread:
    """A daemon thread for consumers, `most` calls in a turn; with `at_rest`, only while that is true."""

    def __init__(self, name: str, buffers: Sequence[CallBuffer], most: int, at_rest: AtRest | None = None) -> None:
        self._buffers = buffers
        self._most = most
        self._at_rest = at_rest
        self._stopped, self._arrived = threading.Event(), threading.Event()
        for buffer in buffers:
            if buffer.arrived.is_set():
                self._arrived.set()
            buffer.arrived = self._arrived
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Stops the thread and closes the consumers. Calls that still wait are consumed, except by those that rerun."""
        self._stopped.set()
        self._arrived.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("the thread %s did not end in time", self._thread.name)
            return
        for buffer in self._buffers:
            if self._at_rest is None:
                while buffer.consume(self._most):
                    pass
            _guarded(buffer.consumer.close, buffer.consumer.name)

    def _run(self) -> None:
        recurrent_kernels.run_in_background(self._at_rest is not None)  # a caller may come while a model runs
        while self._arrived.wait() and not self._stopped.wait(PERIOD_SECONDS):
            self._arrived.clear()
            # A list, so that each consumer has its turn: one that is always busy must not keep the others waiting.
            while any([buffer.consume(self._most) for buffer in self._buffers if self._may_go_on()]):
                if self._stopped.is_set():
                    return
                time.sleep(0)  # gives the interpreter to a thread that answers, if one waits for it

    def _may_go_on(self) -> bool:
        """Waits until the runners are at rest; false if the thread is stopped meanwhile."""
        if self._at_rest is None:
            return True
        pause = _REST_SECONDS
        while not self._at_rest():
            if self._stopped.wait(pause):
                return False
            pause = min(2 * pause, PERIOD_SECONDS)
        return True


def _guarded(function: Callable[[], None], name: str) -> None:
    try:
        function()
    except Exception:
        log.exception("%s could not be closed", name)
