"""Decides when a gRPC message may be received: its size is not known before, so memory is reserved for the largest.

gRPC delivers whole messages only, and says nothing of those that are on their way. So few are received at once, each
in a place with memory for the largest one reserved (`inflight`), of which all but its real size is given back when it
has arrived. The others wait unread; HTTP/2 lets their clients send no more than a window.

```
call ──> a place is free: received ───────────────────────────────> its message
   └──> all are taken: waits in the line of its connection ──┘  └──> silent or slow, while others wait: refused
```

A message that was sent together with its call, as nearly all are, arrives in the next turns of the event loop. So a
call that sends nothing, or slowly, keeps its place only as long as no other waits: then it is refused within
`SILENT_SECONDS`. Connections take turns, one call at a time. First come those whose last message arrived as it should,
then new ones, and last those that were silent. Too many waiting calls are refused, beginning with the connection that
has most of them.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError

SHARE: Final = 2
"""The share of the memory for all calls that may be reserved for messages being received is 1 / `SHARE`."""
SILENT_SECONDS: Final = 0.1
"""After which time a message must have begun to arrive, while others wait."""
MIN_BYTES_PER_SECOND: Final = 262_144
"""How fast a message must arrive from then on, while others wait."""
PATIENCE_SECONDS: Final = 2.0
"""How long a message may take to arrive in any case, while others wait."""
MAX_WAITING: Final = 6144
"""Most calls that wait for a place; beyond it, calls are refused."""
_KNOWN_CONNECTIONS: Final = 8192
"""Of how many connections it is remembered how their last message arrived."""


class _Rank(enum.IntEnum):
    """How the last message of a connection arrived; the lowest ones are received first."""

    PROMPT = 0
    NEW = 1
    SILENT = 2


class _Alarm:
    """Calls a function at a time, as an `asyncio.Timeout` cancels a task."""

    __slots__ = ("_brought_forward", "_call", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float, call: Callable[[], None]) -> None:
        self._loop, self._call = loop, call
        self._timer = loop.call_at(when, call)
        self._brought_forward = False

    def expired(self) -> bool:
        return self._brought_forward

    def reschedule(self, when: float) -> None:
        self.cancel()
        self._timer = self._loop.call_at(when, self._call)
        self._brought_forward = True

    def cancel(self) -> None:
        self._timer.cancel()


@dataclass(slots=True, eq=False)
class _IncomingMessage:
    """A message that is being received.

    Attributes:
        client: Whose it is.
        timeout: Ends it: an `asyncio.Timeout`, or what has its methods.
        began: When its place was given to it, on the clock of the event loop.
        received: The bytes of its connection at `measured`; None if that is not known.
        measured: When the bytes of its connection were looked at first, because others waited; None before.
    """

    client: str
    timeout: asyncio.Timeout | _Alarm
    began: float
    received: int | None = None
    measured: float | None = None


class WaitingCalls:
    """The calls that wait for a place: connections take turns, the prompt ones first.

    Args:
        places: How many calls have one at once.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._lines: tuple[OrderedDict[str, deque[asyncio.Future[None]]], ...] = tuple(OrderedDict() for _ in _Rank)
        self._ranks: OrderedDict[str, _Rank] = OrderedDict()
        self.waiting = 0

    def try_take(self) -> bool:
        """Takes a place if one is free; returns whether it was."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def take(self, client: str) -> None:
        """Waits for a place, which the caller gives back.

        Raises:
            InflightFull: Too many wait, and this connection has most of them.
        """
        if self.try_take():
            return
        if self.waiting >= MAX_WAITING:
            self._refuse_one(client)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lines = self._lines[self._ranks.get(client, _Rank.NEW)]
        lines.setdefault(client, deque()).append(turn)
        self.waiting += 1
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back()  # the place came, and nobody was there to take it
            else:
                self._leave(client, turn)
            raise

    def give_back(self) -> None:
        """Gives a place to the next one that waits."""
        for lines in self._lines:
            while lines:
                client, line = lines.popitem(last=False)
                turn = line.popleft()
                self.waiting -= 1
                if line:
                    lines[client] = line
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1

    def arrived(self, client: str, *, promptly: bool) -> None:
        """Remembers how the last message of a connection arrived, which decides when its next call gets a place."""
        before = self._ranks.pop(client, _Rank.NEW)
        rank = self._ranks[client] = _Rank.PROMPT if promptly else _Rank.SILENT
        line = self._lines[before].pop(client, None) if rank is not before else None
        if line is not None:
            self._lines[rank][client] = line
        if len(self._ranks) > _KNOWN_CONNECTIONS:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        client, rank = self._ranks.popitem(last=False)
        line = self._lines[rank].pop(client, None)
        if line is not None:
            self._lines[_Rank.NEW][client] = line

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        for lines in self._lines:
            line = lines.get(client)
            if line is not None and turn in line:
                line.remove(turn)
                self.waiting -= 1
                if not line:
                    del lines[client]
                return

    def _refuse_one(self, client: str) -> None:
        """Refuses the newest call of the connection that has most waiting calls, the silent connections first.

        Raises:
            InflightFull: That is the connection of the caller.
        """
        full = InflightFull("too many calls wait to send their messages", retry_after_seconds=1)
        worst = next(lines for lines in reversed(self._lines) if lines)
        most = max(worst, key=lambda name: len(worst[name]))
        own = self._lines[self._ranks.get(client, _Rank.NEW)]
        if own is worst and len(own.get(client, ())) >= len(worst[most]):
            raise full
        turn = worst[most][-1]
        self._leave(most, turn)
        if not turn.done():
            turn.set_exception(full)


class Receiving:
    """The messages that are being received.

    Args:
        inflight: The memory for them is reserved here.
        max_bytes: The largest message.
        received_bytes: How many bytes have arrived from a client; None if that is not known.
        places: How many are received at once. Default: as many as the memory allows.
    """

    def __init__(
        self,
        inflight: Inflight,
        max_bytes: int,
        received_bytes: Callable[[str], int | None],
        places: int | None = None,
    ) -> None:
        self._reserved_bytes = 2 * max_bytes  # gRPC's own copy, and the copy for Python
        self._turns = WaitingCalls(places or max(1, inflight.max_bytes // SHARE // self._reserved_bytes))
        self._received_bytes = received_bytes
        self._arrivals: dict[_IncomingMessage, None] = {}  # the one that began first is first
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def one(self, hold: Hold, deadline: float, client: str) -> AsyncIterator[None]:
        """Reserves memory for one message, which is received while the block runs; `hold` keeps it afterwards.

        Args:
            hold: The bytes of the call.
            deadline: Until when to wait for the turn and for the message, on the clock of `time.monotonic`.
            client: The connection.

        Raises:
            InflightFull: There is no memory for it now, or too many calls wait.
            DeadlineExceeded: The deadline passed, or the message was silent or slow and others waited.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline - time.monotonic()
        if not self._turns.try_take():
            await self._wait(until, client)
        try:
            hold.set(self._reserved_bytes)
            async with asyncio.timeout_at(until) as timeout:
                arrival = _IncomingMessage(client, timeout, loop.time())
                self._arrivals[arrival] = None
                try:
                    yield
                finally:
                    del self._arrivals[arrival]
            self._turns.arrived(client, promptly=True)
        except TimeoutError:
            self._turns.arrived(client, promptly=False)
            raise DeadlineExceeded("the message did not come in time") from None
        finally:
            self._turns.give_back()

    def start(
        self, hold: Hold, deadline: float, client: str, late: Callable[[], None]
    ) -> Callable[[bool], None] | None:
        """Reserves memory for one message if a place is free, without waiting.

        Args:
            hold: As for `one`.
            deadline: As for `one`.
            client: As for `one`.
            late: Called once where `one` raises `DeadlineExceeded`.

        Returns:
            What gives the place back, to be called once, with whether the message arrived; None without a place.

        Raises:
            InflightFull: As `one`.
        """
        if not self._turns.try_take():
            return None
        try:
            hold.set(self._reserved_bytes)
        except RequestError:
            self._turns.give_back()
            raise
        loop = asyncio.get_running_loop()
        alarm = _Alarm(loop, loop.time() + deadline - time.monotonic(), late)
        arrival = _IncomingMessage(client, alarm, loop.time())
        self._arrivals[arrival] = None

        def end(arrived: bool) -> None:
            alarm.cancel()
            del self._arrivals[arrival]
            self._turns.arrived(client, promptly=arrived)
            self._turns.give_back()

        return end

    async def _wait(self, until: float, client: str) -> None:
        """Waits for a place; while any call waits, silent and slow messages are refused."""
        if self._timer is None:
            self._end_slow()
        try:
            async with asyncio.timeout_at(until):
                await self._turns.take(client)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the message could be received") from None

    def _end_slow(self) -> None:
        """Refuses the messages that are silent or slow, and checks again later while others wait."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for arrival in self._arrivals:
            if not arrival.timeout.expired() and self._is_slow(arrival, now):
                arrival.timeout.reschedule(now)
        self._timer = loop.call_later(SILENT_SECONDS / 2, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if self._turns.waiting:
            self._end_slow()

    def _is_slow(self, arrival: _IncomingMessage, now: float) -> bool:
        """Whether a message that others wait for arrives too slowly: by what came since that was looked at first."""
        if now - arrival.began >= PATIENCE_SECONDS:
            return True
        received = self._received_bytes(arrival.client)
        if arrival.measured is None:
            arrival.measured, arrival.received = now, received
            return False
        if received is None or arrival.received is None or now - arrival.began < SILENT_SECONDS:
            return False
        return received - arrival.received < MIN_BYTES_PER_SECOND * (now - arrival.measured)
