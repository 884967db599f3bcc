"""Decides when a gRPC message may be received: its size is not known before, so memory is reserved for the largest.

gRPC delivers whole messages only, and tells nothing of a message before it is complete. So few are received at once.
Each has a *slot*: memory for the largest message is reserved in its hold (`inflight`), and what the message did not
need is given back when it has arrived. The other messages wait unread; HTTP/2 lets their clients send no more than a
window.

```
call ──> a slot is free: received ────────────────────────────────> its message
   └──> all are taken: waits in the line of its connection ──┘  └──> silent or slow, while others wait: refused
```

A message that was sent together with its call, as nearly all are, arrives in the next turns of the event loop. A call
whose client sends nothing (it is *silent*) or too slowly keeps its slot only while no other call waits: then it is
refused within `SILENT_SECONDS`. Connections take turns, one call at a time, in the order of their ranks (`_Rank`). If
too many calls wait, one is refused: the newest of the connection that has most of them.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError

SHARE: Final = 2  # 1 / `SHARE` of the memory for all calls may be reserved for messages being received
# While other calls wait, a message
SILENT_SECONDS: Final = 0.1  # must have begun to arrive after this time,
MIN_BYTES_PER_SECOND: Final = 262_144  # arrive at this speed from then on,
PATIENCE_SECONDS: Final = 2.0  # and be complete after this time.
MAX_WAITING: Final = 6144  # calls that wait for a slot; beyond it, calls are refused
_SLOW: Final = "the message did not come in time"
_WAITED: Final = "the deadline passed before the message could be received"
_KNOWN_CONNECTIONS: Final = 8192  # connections whose ranks are remembered; of more, the oldest ones count as new


class _Rank(enum.IntEnum):
    """How the last message of a connection arrived. Calls of the lowest rank are received first."""

    PROMPT = 0  # completely
    NEW = 1  # there was none so far
    SILENT = 2  # too slowly or not at all


@dataclass(slots=True, eq=False)
class IncomingMessage:
    """A message that waits for a slot, or is being received. Times are those of `time.monotonic`."""

    hold: Hold  # the reserved memory of its call
    client: str  # the address and port of its connection
    begin: Callable[[], object]  # called when the message may be received
    refuse: Callable[[RequestError], object]  # called when it may not, or no longer; `end` need not be called then
    began: float | None = None  # when it got its slot; None while it waits
    measured: float | None = None  # when its connection's bytes were first counted, because others waited
    received: int | None = None  # how many bytes these were; None if that is not known
    timer: asyncio.TimerHandle | None = None  # ends it at its deadline; None once the message is over

    def take_refusal(self) -> Callable[[RequestError], object]:
        """Ends the message, and returns its `refuse`, which the caller may call.

        Stops the timer, and drops the references to the call: `begin` and `refuse` do nothing from now on.
        """
        refuse = self.refuse
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.begin, self.refuse = None, bool, bool  # `bool` takes one argument or none, and does nothing
        return refuse


@dataclass
class WaitingCalls:
    """The messages that wait for a slot: connections take turns, in the order of their ranks."""

    waiting: int = 0  # messages in all lines
    # For each rank, the lines of messages by client; the client whose turn it is is first
    _lines: tuple[OrderedDict[str, deque[IncomingMessage]], ...] = field(
        default_factory=lambda: tuple(OrderedDict() for _ in _Rank), init=False
    )
    # By client; the one updated longest ago is first
    _ranks: OrderedDict[str, _Rank] = field(default_factory=OrderedDict, init=False)

    def join(self, message: IncomingMessage) -> IncomingMessage | None:
        """Adds a message at the end of its connection's line; if too many wait, one of them has to be refused.

        Returns the message to refuse: the newest one of the connection that has most messages, among the connections of
        the highest rank. That may be the added message itself, which is not added then. None if there is room.
        """
        client, refused = message.client, None
        rank = self._ranks.get(client, _Rank.NEW)
        lines = self._lines[rank]
        if self.waiting >= MAX_WAITING:
            highest_rank = max(rank for rank in _Rank if self._lines[rank])
            longest = max(self._lines[highest_rank].values(), key=len)
            if rank > highest_rank or (rank == highest_rank and len(lines.get(client, ())) >= len(longest)):
                return message
            refused = longest[-1]
            self.leave(refused)
        lines.setdefault(client, deque()).append(message)
        self.waiting += 1
        return refused

    def next(self) -> IncomingMessage | None:
        """Removes the message whose turn it is and returns it; None if none waits.

        The connection's other messages go to the end of its rank.
        """
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
        """Removes a waiting message from its connection's line; does nothing if it is in none."""
        for lines in self._lines:
            line = lines.get(message.client)
            if line is not None and message in line:
                line.remove(message)
                self.waiting -= 1
                if not line:
                    del lines[message.client]

    def set_rank(self, client: str, *, promptly: bool) -> None:
        """Sets the rank of a connection by how its last message arrived, and moves its line of waiting calls there."""
        old_rank = self._ranks.pop(client, _Rank.NEW)
        rank = self._ranks[client] = _Rank.PROMPT if promptly else _Rank.SILENT
        if rank is not old_rank:
            self._move(client, old_rank, rank)
        if len(self._ranks) > _KNOWN_CONNECTIONS:  # the one updated longest ago counts as new again
            self._move(*self._ranks.popitem(last=False), _Rank.NEW)

    def _move(self, client: str, old_rank: _Rank, rank: _Rank) -> None:
        """Moves a client's line, if it has one, to the end of another rank."""
        if (line := self._lines[old_rank].pop(client, None)) is not None:
            self._lines[rank][client] = line


class Receiving:
    """The messages that are being received, each in a slot; as many slots as fit in this process's share of the memory.

    `received_bytes` says how many bytes have arrived on a client's connection, or None if that is not known.
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
        # Slots that are free
        self.free = slots or max(1, inflight.max_bytes // len(inflight.cells) // SHARE // self._reserved_bytes)
        self._line = WaitingCalls()  # messages that wait for a slot
        self._received_bytes = received_bytes
        self._arrivals: dict[IncomingMessage, None] = {}  # messages that have a slot, in the order in which they got it
        self._timer: asyncio.TimerHandle | None = None  # of the next `_end_slow`, while messages wait

    def expected_bytes(self, client: str) -> int:
        """The largest number of bytes that may arrive for the messages of a client that have a slot."""
        return self._max_bytes * sum(message.client == client for message in self._arrivals)

    def start(self, message: IncomingMessage, deadline: float) -> None:
        """Receives a message when it is its turn: reserves memory for the largest in its hold, and calls its `begin`.

        It is refused (its `refuse` is called) with
        - `InflightFull` if there is no memory for it, or too many messages wait;
        - `DeadlineExceeded` if the deadline passes (on the clock of `time.monotonic`), or its client is silent or slow
          while others wait.
        """
        message.timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._refuse_late, message)
        if self.free:
            self.free -= 1
            if not self._reserve(message):
                self._give_back()
            return
        if (refused := self._line.join(message)) is not None:
            refused.take_refusal()(InflightFull("too many calls wait to send their messages", retry_after_seconds=1))
        if self._timer is None:
            self._end_slow()  # gives the slots of slow messages to those that wait

    def end(self, message: IncomingMessage, *, arrived: bool) -> None:
        """Gives the slot of a message back, or removes it from the line of those that wait; a second call does nothing.

        `arrived`: whether the message came. If not, the connection's next calls are received last.
        """
        if message.timer is None:
            return
        message.take_refusal()
        if message.began is None:
            self._line.leave(message)
            return
        del self._arrivals[message]
        self._line.set_rank(message.client, promptly=arrived)
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
        """Gives a slot to the next waiting message for which there is memory; without one, counts the slot as free."""
        while (next_message := self._line.next()) is not None:
            if self._reserve(next_message):
                return
        self.free += 1

    def _refuse_late(self, message: IncomingMessage) -> None:
        """Refuses a message that has waited for a slot until its deadline, or that arrives too late or too slowly."""
        refuse, has_slot = message.refuse, message.began is not None  # before `end`, which drops them
        self.end(message, arrived=False)
        refuse(DeadlineExceeded(_SLOW if has_slot else _WAITED))

    def _end_slow(self) -> None:
        """While messages wait: refuses those in slots that arrive too slowly, and calls itself again after a time."""
        self._timer = None
        if self._line.waiting:
            now = time.monotonic()
            for message in [message for message in self._arrivals if self._is_slow(message, now)]:
                self._refuse_late(message)
            self._timer = asyncio.get_running_loop().call_later(SILENT_SECONDS / 2, self._end_slow)

    def _is_slow(self, message: IncomingMessage, now: float) -> bool:
        """Whether a message in a slot arrives too slowly.

        - After `PATIENCE_SECONDS` in the slot it is.
        - At the first call before that, the bytes of its connection are counted; it is not.
        - From `SILENT_SECONDS` on it is, if fewer bytes than `MIN_BYTES_PER_SECOND` came since that count.
        """
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
