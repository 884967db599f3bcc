"""The load generator's client: keep-alive connections, requests sent when they are due, every answer timed.

In a closed loop, each connection sends its next request as soon as it has its answer. In an open loop, requests are due
at fixed moments, and latency counts from then: a server that stalls does not slow down its own measurement (coordinated
omission; G. Tene, "How NOT to Measure Latency", 2013). All times are seconds since the start of the load.
"""

from __future__ import annotations

import math
import select
import selectors
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.bench.connection import ConnectionLostError, LoadConnection, ServerAddress
from lengthwise.errors import ConfigurationError

_TICK_SECONDS = 0.2  # between two calls of a `Tick`

Check = Callable[[int, bytes], bool]  # whether the answer to a request, by its index, is right

Tick = Callable[[int, float], None]  # called repeatedly with the number of requests sent and the seconds passed


class Requests(Protocol):
    """The requests of a load, by index. Each is asked for when it is sent."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """When requests are due: at `moments` (an open loop), or without them when a connection is free (a closed loop)."""

    moments: Sequence[float] | None = None  # ascending
    seconds: float = math.inf  # after which a closed loop ends
    count: float = math.inf  # requests after which a closed loop ends

    def due(self, sent: int, now: float) -> float:
        """When the next request is due, in seconds since the start; infinity if there is no further one.

        `sent` requests were sent before it, and the time is `now`.
        """
        if self.moments is not None:
            return self.moments[sent] if sent < len(self.moments) else math.inf
        return now if sent < self.count and now < self.seconds else math.inf


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured in one load: arrays `[answers]`, and the number of requests without an answer."""

    due: NDArray[np.float64]  # when each answered request was due,
    sent: NDArray[np.float64]  # was sent,
    answered: NDArray[np.float64]  # and was answered
    status: NDArray[np.int64]  # of the answers
    unsent: int  # due, but no connection was free until the time limit
    unanswered: int  # when the load gave up waiting
    broken: int  # connections closed or reset before the answer
    wrong: int  # answers of status 200 that failed the check
    seconds: float  # how long the load lasted
    cpu_seconds: float  # of the client itself

    @property
    def latency(self) -> NDArray[np.float64]:
        """`[answers]`, seconds from the moment due to the answer."""
        return self.answered - self.due


def ask_each(target: ServerAddress, requests: Sequence[bytes], *, tick: Tick | None = None) -> list[bytes]:
    """Sends the requests one by one, and returns the bodies of the answers, which must have status 200.

    Raises:
        ConfigurationError: A request got no answer, or one of another status than 200.
    """
    bodies: list[bytes] = []

    def keep(_index: int, body: bytes) -> bool:
        """Keeps the body of an answer. `Load` asks it whether each answer is right, and it always says yes."""
        bodies.append(body)
        return True

    # A closed loop over one connection sends one request after the other.
    one_by_one = Schedule(count=len(requests))
    measurement = Load(target, requests, one_by_one, check=keep, tick=tick, patience_seconds=60.0).run(1)
    other_statuses = measurement.status[measurement.status != 200]
    if len(bodies) != len(requests):
        problem = f"answered {other_statuses[0]}" if other_statuses.size else "did not answer"
        raise ConfigurationError(f"{target.url} {problem} to one of {len(requests)} requests sent one by one")
    return bodies


def wait_for_events(
    selector: selectors.DefaultSelector, seconds: float, *, exact: bool
) -> list[tuple[selectors.SelectorKey, int]]:
    """Waits for events of a selector, and returns them; after so many seconds it returns without events.

    `exact`: the wait ends within microseconds after that, else within some milliseconds.
    """
    if exact:
        # The selector's own timeout has a resolution of a millisecond, which is as long as an answer takes. That of
        # `select` has microseconds; it waits for the selector, which is a file that is readable if there are events.
        select.select([selector], [], [], max(seconds, 0.0))
        seconds = 0
    return selector.select(seconds)


@dataclass(slots=True)
class Load:
    """Sends requests when they are due, in their order, and again from the first after the last."""

    target: ServerAddress
    requests: Requests
    schedule: Schedule
    check: Check | None = None  # says whether an answer of status 200 is right
    tick: Tick | None = None  # shows the progress
    patience_seconds: float = 10.0  # while answers are outstanding, this long without any event ends the load
    limit_seconds: float = math.inf  # after it no request is sent
    _selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)
    _idle: deque[LoadConnection] = field(default_factory=deque)  # connections without a request
    _count: int = 0  # requests that were sent
    _in_flight: int = 0  # requests that wait for an answer
    _wrong: int = 0  # answers that failed the check
    _broken: int = 0  # requests whose connection broke
    _answers: array[float] = field(default_factory=lambda: array("d"))  # due, sent, answered and status of each
    _start: float = 0.0  # on the clock of `time.perf_counter`

    def run(self, connections: int) -> Measurement:
        """Sends the requests over at most `connections` at once, and waits for their answers; runs once.

        Raises ConfigurationError if the server cannot be reached, goes away, or sends what this client cannot read.
        """
        try:
            for _ in range(connections):
                self._connect()
            cpu_start = time.process_time()
            self._start = time.perf_counter()
            self._loop()
            due, sent, answered, status = np.array(self._answers).reshape(-1, 4).T
            return Measurement(
                due,
                sent,
                answered,
                status.astype(np.int64),
                unsent=max(len(self.schedule.moments or ()) - self._count, 0),
                unanswered=self._in_flight,
                broken=self._broken,
                wrong=self._wrong,
                seconds=self._now(),
                cpu_seconds=time.process_time() - cpu_start,
            )
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.socket.close()
            self._selector.close()

    def _loop(self) -> None:
        """Sends requests when they are due, and reads answers, until all are answered.

        Also returns if requests wait for answers, and nothing has happened for `patience_seconds`.
        """
        next_tick = 0.0  # when the progress is shown next
        last_event = 0.0  # when a connection was last ready, or no request waited
        while True:
            now = self._now()
            due = self._dispatch(now)  # of the next request
            if self._in_flight == 0 and due == math.inf:
                return
            if self.tick is not None and now >= next_tick:
                self.tick(self._count, now)
                next_tick = now + _TICK_SECONDS
            if self._in_flight == 0:
                last_event = now
            elif now - last_event > self.patience_seconds:
                return
            # Wait for answers, until the next request is due (if a connection is free for it) or the next tick
            wake = min(due, now + _TICK_SECONDS) if self._idle else now + _TICK_SECONDS
            for key, events in wait_for_events(self._selector, wake - now, exact=bool(self._idle)):
                last_event = self._serve(key.data, events)
                self._dispatch(self._now())  # on the connection that is free now

    def _dispatch(self, now: float) -> float:
        """Sends the requests that are due, while connections are free.

        Returns when the next request is due, in seconds since the start, which may be past; infinity if no further one
        is sent.
        """
        if now > self.limit_seconds:
            return math.inf
        while (due := self.schedule.due(self._count, now)) <= now and self._idle:
            connection = self._idle.popleft()
            connection.index = self._count % len(self.requests)
            connection.due = due
            connection.sent = now
            self._count += 1
            self._in_flight += 1
            try:
                connection.send(self.requests[connection.index])
            except ConnectionLostError:
                self._replace(connection)
                continue
            if connection.unsent:  # the rest is sent when the socket can take it
                self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        return due

    def _serve(self, connection: LoadConnection, events: int) -> float:
        """Writes to a connection, or reads from it, as its `events` of the selector say; counts a complete answer.

        A connection that has its answer is idle again. Returns the time afterwards.
        """
        if connection.socket.fileno() < 0:  # replaced since the selector saw it
            return self._now()
        try:
            if events & selectors.EVENT_WRITE:
                connection.send(connection.unsent)
                if not connection.unsent:
                    self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            answer = connection.receive() if events & selectors.EVENT_READ else None
        except ConnectionLostError:
            self._replace(connection)
            return self._now()
        now = self._now()
        if answer is not None:
            status, head, body = answer
            self._answers.extend((connection.due, connection.sent, now, status))
            if status == 200 and self.check is not None and not self.check(connection.index, body):
                self._wrong += 1
            self._in_flight -= 1
            connection.index = -1
            if b"\r\nconnection: close" in head:
                self._replace(connection)
            else:
                self._idle.append(connection)
        return now

    def _connect(self) -> None:
        """Opens a connection, which is idle."""
        connection = LoadConnection(self.target)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._idle.append(connection)

    def _replace(self, connection: LoadConnection) -> None:
        """Replaces a connection that is lost, or that the server closes, by a new one.

        A request that was under way on it counts as broken, and is not sent again.
        """
        if connection.index >= 0:
            self._broken += 1
            self._in_flight -= 1
        elif connection in self._idle:
            self._idle.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connect()

    def _now(self) -> float:
        return time.perf_counter() - self._start
