"""What consumes answered calls, in the thread `monitoring` (counting, writing) or `reruns` (models, at rest only).

The thread that answers only puts a call into the bounded buffers of the consumers that sample it; when one is too slow,
calls are dropped and counted, and no caller waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from lengthwise.decoding.calls import Item
from lengthwise.repository.served import ServedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.answers import Answer
from lengthwise.telemetry.families import Family

log = logging.getLogger("lengthwise.monitoring")

MOST_CALLS: Final = 4096
MOST_BYTES: Final = 32 * 2**20  # what one buffer holds at most
PERIOD_SECONDS: Final = 0.2  # how long calls gather, so that a thread that answers is seldom disturbed
_REST_SECONDS: Final = 0.002  # to the next look if runners are at rest; then twice, up to `PERIOD_SECONDS`


class AnsweredCall(NamedTuple):
    """One call with its answers."""

    model: ServedModel
    items: Sequence[Item]
    answers: Sequence[Answer]
    request_id: str
    arrived: float  # in seconds since the epoch
    queue_seconds: float
    inference_seconds: float
    held_bytes: int  # memory of its sequences


AtRest = Callable[[], bool]  # no sequence waits and no batch runs: a model may run for the monitoring


class Consumer(Protocol):
    """Consumes a `share` of the answered calls; `name` is the label `consumer` of its metrics."""

    name: str
    share: float

    def wants(self, call: AnsweredCall) -> bool:
        """Whether a call is of use for it. Called in the thread that answers: it must be quick."""
        return True

    def consume(self, calls: Sequence[AnsweredCall]) -> None:
        """Consumes calls."""

    def close(self) -> None:
        """Ends its work; nothing is consumed afterwards."""
        return  # most have nothing open

    def families(self) -> Iterator[Family]:
        """Its metrics."""


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
