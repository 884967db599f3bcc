"""Decides when a gRPC message may be received: its size is not known before, so memory is reserved for the largest.

gRPC delivers whole messages only, and says nothing of those that are on their way. So few are received at once, each
in a slot with memory for the largest one reserved (`inflight`), of which all but its real size is given back when it
has arrived. The others wait unread; HTTP/2 lets their clients send no more than a window.

```
call ──> a slot is free: received ────────────────────────────────> its message
   └──> all are taken: waits in the line of its connection ──┘  └──> silent or slow, while others wait: refused
```

A message that was sent together with its call, as nearly all are, arrives in the next turns of the event loop. So a
call that sends nothing, or slowly, keeps its slot only as long as no other waits: then it is refused within
`SILENT_SECONDS`. Connections take turns, one call at a time. First come those whose last message arrived as it should,
then new ones, and last those that were silent. Too many waiting calls are refused, beginning with the connection that
has most of them.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError

SHARE: Final = 2  # 1 / `SHARE` of the memory for all calls may be reserved for messages being received
SILENT_SECONDS: Final = 0.1  # after which a message must have begun to arrive, while others wait
MIN_BYTES_PER_SECOND: Final = 262_144  # how fast it must arrive from then on, while others wait
PATIENCE_SECONDS: Final = 2.0  # that it may take to arrive in any case, while others wait
MAX_WAITING: Final = 6144  # calls that wait for a slot; beyond it, calls are refused
_KNOWN_CONNECTIONS: Final = 8192  # of which it is remembered how their last message arrived


class _Rank(enum.IntEnum):
    """How the last message of a connection arrived; the lowest ones are received first."""

    PROMPT = 0
    NEW = 1
    SILENT = 2


@dataclass(slots=True, eq=False)
class IncomingMessage:
    """A message that waits for a slot, or is being received."""

    hold: Hold  # the bytes of its call
    client: str  # its connection
    begin: Callable[[], object]  # called when it may be received
    refuse: Callable[[RequestError], object]  # called where it may not, or no longer: `end` need not be called then
    began: float | None = None  # in seconds, when it got its slot
    measured: float | None = None  # when its connection's bytes were looked at first, because others waited
    received: int | None = None  # these bytes; None if that is not known
    timer: asyncio.TimerHandle | None = None  # its deadline; None when it is over

    def take_refusal(self) -> Callable[[RequestError], object]:
        """Ends the message: stops its timer, drops its references to the call, and returns `refuse` to be called."""
        refuse = self.refuse
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.begin, self.refuse = None, bool, bool
        return refuse


class WaitingCalls:
    """The messages that wait for a slot: connections take turns, the prompt ones first."""

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[str, deque[IncomingMessage]], ...] = tuple(OrderedDict() for _ in _Rank)
        self._ranks: OrderedDict[str, _Rank] = OrderedDict()
        self.waiting = 0

    def join(self, message: IncomingMessage) -> IncomingMessage | None:
        """Adds a message at the end of its connection's line.

        Where too many wait, one is refused for it, and returned: the newest of the connection that has most of them,
        the silent connections first. That may be the message itself.
        """
        client, refused = message.client, None
        rank = self._ranks.get(client, _Rank.NEW)
        lines = self._lines[rank]
        if self.waiting >= MAX_WAITING:
            worst = max(rank for rank in _Rank if self._lines[rank])
            longest = max(self._lines[worst].values(), key=len)
            if rank > worst or (rank == worst and len(lines.get(client, ())) >= len(longest)):
                return message
            refused = longest[-1]
            self.leave(refused)
        lines.setdefault(client, deque()).append(message)
        self.waiting += 1
        return refused

    def next(self) -> IncomingMessage | None:
        """Takes out the message whose turn it is."""
        for lines in self._lines:
            if lines:
                client, line = lines.popitem(last=False)
                self.waiting -= 1
                message = line.popleft()
                if line:
                    lines[client] = line
                return message
        return None

    def leave(self, message: IncomingMessage) -> None:
        """Takes out a message that waits no more."""
        for lines in self._lines:
            line = lines.get(message.client)
            if line is not None and message in line:
                line.remove(message)
                self.waiting -= 1
                if not line:
                    del lines[message.client]

    def arrived(self, client: str, *, promptly: bool) -> None:
        """Remembers how the last message of a connection arrived, which decides when its next call gets a slot."""
        before = self._ranks.pop(client, _Rank.NEW)
        rank = self._ranks[client] = _Rank.PROMPT if promptly else _Rank.SILENT
        if rank is not before:
            self._move(client, before, rank)
        if len(self._ranks) > _KNOWN_CONNECTIONS:
            self._move(*self._ranks.popitem(last=False), _Rank.NEW)

    def _move(self, client: str, before: _Rank, rank: _Rank) -> None:
        if (line := self._lines[before].pop(client, None)) is not None:
            self._lines[rank][client] = line


class Receiving:
    """The messages that are being received: each in one of few slots, as many as fit in the memory of this process.

    `received_bytes` says how many bytes have arrived from a client, or None.
    """

    def __init__(
        self,
        inflight: Inflight,
        max_bytes: int,
        received_bytes: Callable[[str], int | None],
        slots: int | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._reserved_bytes = 2 * max_bytes  # gRPC's own copy, and the copy for Python
        self.free = slots or max(1, inflight.max_bytes // len(inflight.cells) // SHARE // self._reserved_bytes)
        self._line = WaitingCalls()
        self._received_bytes = received_bytes
        self._arrivals: dict[IncomingMessage, None] = {}  # the one that began first is first
        self._timer: asyncio.TimerHandle | None = None

    def expected_bytes(self, client: str) -> int:
        """How many bytes of messages a client may be sending that have a slot."""
        return self._max_bytes * sum(message.client == client for message in self._arrivals)

    def start(self, message: IncomingMessage, deadline: float) -> None:
        """Receives a message when it is its turn. Memory for the largest is reserved, and stays in its hold.

        It is refused with `InflightFull` where there is no memory for it, or too many wait, and with `DeadlineExceeded`
        where the deadline (on the clock of `time.monotonic`) passes, or it is silent or slow while others wait.
        """
        message.timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._late, message)
        if self.free:
            self.free -= 1
            if not self._reserve(message):
                self._give_back()
            return
        if (refused := self._line.join(message)) is not None:
            refused.take_refusal()(InflightFull("too many calls wait to send their messages", retry_after_seconds=1))
        if self._timer is None:
            self._end_slow()  # whose slots go to those that wait, this message among them

    def end(self, message: IncomingMessage, *, arrived: bool) -> None:
        """Gives a message's slot back, or its turn; does nothing the second time.

        A connection whose message has not `arrived` comes after those that send what they said.
        """
        if message.timer is None:
            return
        message.take_refusal()
        if message.began is None:
            self._line.leave(message)
            return
        del self._arrivals[message]
        self._line.arrived(message.client, promptly=arrived)
        self._give_back()

    def _reserve(self, message: IncomingMessage) -> bool:
        """Reserves memory for a message and begins to receive it; without memory, refuses it and returns False."""
        try:
            message.hold.set(self._reserved_bytes)
        except RequestError as error:
            message.take_refusal()(error)
            return False
        message.began = time.monotonic()
        self._arrivals[message] = None
        message.begin()
        return True

    def _give_back(self) -> None:
        while (following := self._line.next()) is not None:
            if self._reserve(following):
                return
        self.free += 1

    def _late(self, message: IncomingMessage) -> None:
        """Refuses a message: its deadline passed while it waited, or it comes too late or too slowly."""
        refuse, waited = message.refuse, message.began is None  # before `end`, which forgets both
        self.end(message, arrived=False)
        if waited:
            detail = "the deadline passed before the message could be received"
        else:
            detail = "the message did not come in time"
        refuse(DeadlineExceeded(detail))

    def _end_slow(self) -> None:
        """While messages wait: refuses those that are silent or slow, and looks again later."""
        self._timer = None
        if self._line.waiting:
            now = time.monotonic()
            for message in [one for one in self._arrivals if self._is_slow(one, now)]:
                self._late(message)
            self._timer = asyncio.get_running_loop().call_later(SILENT_SECONDS / 2, self._end_slow)

    def _is_slow(self, message: IncomingMessage, now: float) -> bool:
        """Whether a message that others wait for arrives too slowly, by the bytes since it was first looked at."""
        seconds = now - (message.began or now)
        if seconds >= PATIENCE_SECONDS:
            return True
        received = self._received_bytes(message.client)
        if message.measured is None:
            message.measured, message.received = now, received
            return False
        if received is None or message.received is None or seconds < SILENT_SECONDS:
            return False
        return received - message.received < MIN_BYTES_PER_SECOND * (now - message.measured)
