"""The monitoring of a service: its consumers, their buffers and threads, and their metrics.

Each consumer has a buffer of calls and a thread. The thread that answers a call only puts it into the buffers of the
consumers that sample it. If a buffer is full, the call is dropped there and counted; no caller waits. A consumer that
runs models does so only while no runner is busy (the service is *at rest*).
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
from lengthwise.monitoring.consumers import AnswerCheck, AnsweredCall, Consumer
from lengthwise.monitoring.recorder import Recorder
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import Answer
from lengthwise.settings import Settings
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

MOST_CALLS: Final = 4096  # in one buffer
MOST_BYTES: Final = 32 * 2**20  # of the sequences in one buffer
PERIOD_SECONDS: Final = 0.2  # how long calls gather in the buffer, so that threads that answer are seldom disturbed
_REST_SECONDS: Final = 0.002  # first pause if the service is not at rest; each pause doubles, up to `PERIOD_SECONDS`
_COUNTED: int = 64  # calls consumed at once: so few that no thread waits long for the interpreter
_STOP_SECONDS = 10.0  # within which a thread must end


class Monitoring:
    """The consumers that the settings switch on, each with its thread.

    Args:
        settings: The options.
        at_rest: Says whether the service is at rest; None if answers are not checked.
    """

    def __init__(self, settings: Settings, at_rest: Callable[[], bool] | None) -> None:
        self._threads: list[ConsumerThread] = []
        if settings.record is not None and settings.record_share > 0:
            recorder = Recorder(settings.record, settings.record_share, settings.record_max_bytes)
            self._threads.append(ConsumerThread(recorder))
        if at_rest is not None:
            self._threads.append(ConsumerThread(AnswerCheck(settings.verify_share), at_rest))

    def start(self) -> None:
        """Starts the threads, and logs which consumers there are."""
        for thread in self._threads:
            log.info("%s: a share of %g of the calls is sampled", thread.consumer.name, thread.consumer.share)
            thread.start()

    def stop(self) -> None:
        """Stops the threads. Calls that wait are still recorded, but no model runs for them."""
        for thread in self._threads:
            thread.stop(_STOP_SECONDS)

    def answered(
        self, call: Call, answers: Sequence[Answer], timing: Timing, *, request_id: bytes, arrived: float
    ) -> None:
        """Offers an answered call to all consumers; runs in the thread that answers the call.

        Args:
            call: The call.
            answers: One for each of its sequences.
            timing: How long the call waited and ran.
            request_id: The id of the call.
            arrived: When it arrived, in seconds of `time.monotonic`.
        """
        answered_call = AnsweredCall(
            call.model,
            call.items,
            answers,
            request_id.decode(),
            time.time() - (time.monotonic() - arrived),  # the same moment in seconds since 1970
            timing.queue,
            timing.inference,
            call.memory_bytes,
        )
        for thread in self._threads:
            thread.offer(answered_call)

    def families(self) -> Iterator[Family]:
        """Yields the metrics of all consumers, and the number of calls that each dropped."""
        for thread in self._threads:
            yield from thread.consumer.families()
        yield Family(
            "counter",
            "sum",
            "monitoring_dropped_calls",
            "Sampled calls that were dropped because the consumer was too slow or failed.",
            ("consumer",),
            [((thread.consumer.name,), thread.dropped) for thread in self._threads],
        )


class ConsumerThread(threading.Thread):
    """A bounded buffer of calls for one consumer, and the daemon thread that passes the calls to the consumer.

    Args:
        consumer: The consumer.
        at_rest: Given if the consumer runs models: calls are then passed on one by one, and only while this function
            returns True.
    """

    def __init__(self, consumer: Consumer, at_rest: Callable[[], bool] | None = None) -> None:
        super().__init__(name=consumer.name, daemon=True)
        self.consumer = consumer
        self.dropped = 0  # calls, because the consumer was too slow or failed
        self._at_rest = at_rest
        self._calls: deque[AnsweredCall] = deque()
        self._bytes = 0  # of the sequences in the buffer
        self._lock = threading.Lock()  # of the buffer and the counters
        # Set when the thread has to end, and when there are calls in the buffer
        self._ending, self._arrived = threading.Event(), threading.Event()

    def __len__(self) -> int:
        return len(self._calls)

    def offer(self, call: AnsweredCall) -> None:
        """Puts a call of the random share into the buffer; if the buffer is full, the call is dropped and counted."""
        if self.consumer.share < 1 and random.random() >= self.consumer.share:
            return
        with self._lock:
            if len(self._calls) < MOST_CALLS and self._bytes + call.memory_bytes <= MOST_BYTES:
                self._calls.append(call)
                self._bytes += call.memory_bytes
            else:
                self.dropped += 1
        if not self._arrived.is_set():  # `set` takes longer than `is_set`
            self._arrived.set()

    def stop(self, seconds: float) -> None:
        """Stops the thread and closes the consumer; gives up if the thread has not ended within `seconds`.

        Before that it passes on the calls in the buffer, unless the consumer runs models.
        """
        self._ending.set()
        self._arrived.set()
        if self.ident is not None:
            self.join(seconds)
        if self.is_alive():
            log.warning("the thread %s did not end in time", self.name)
            return
        while self._at_rest is None and self.consume():
            pass
        self.consumer.close()

    def consume(self) -> bool:
        """Passes the next calls to the consumer; returns whether there were any in the buffer.

        If the consumer fails, that is logged, and these calls count as dropped.
        """
        with self._lock:
            most_at_once = _COUNTED if self._at_rest is None else 1
            calls = [self._calls.popleft() for _ in range(min(most_at_once, len(self._calls)))]
            self._bytes -= sum(call.memory_bytes for call in calls)
        if not calls:
            return False
        try:
            self.consumer.consume(calls)
        except Exception:  # an error here must end neither the thread nor the service
            log.exception("%d answered calls could not be used for %s", len(calls), self.consumer.name)
            with self._lock:
                self.dropped += len(calls)
        return True

    def run(self) -> None:
        """Passes calls to the consumer until the thread is stopped. Between two rounds, calls gather in the buffer."""
        recurrent_kernels.yield_after_steps(self._at_rest is not None)  # a caller may come while a model runs
        while self._arrived.wait() and not self._ending.wait(PERIOD_SECONDS):
            self._arrived.clear()
            while self._turn():
                if self._ending.is_set():
                    return
                time.sleep(0)  # gives the interpreter to a thread that answers, if one waits for it

    def _turn(self) -> bool:
        """Passes the next calls to the consumer; if that runs models, waits first until the service is at rest.

        Returns whether calls were passed on: False if the buffer is empty, or if the thread has to end.
        """
        if self._at_rest is None:
            return self.consume()
        pause = _REST_SECONDS
        while not self._at_rest():
            if self._ending.wait(pause):
                return False
            pause = min(2 * pause, PERIOD_SECONDS)
        return self.consume()
