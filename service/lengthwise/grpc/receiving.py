"""Decides when a gRPC message may be received: its size is not known before, so memory is reserved for the largest.

gRPC delivers whole messages only, and tells nothing of a message before it is complete. So few are received at once.
Each has a *slot* (`connections.fair_slots`): memory for the largest message is reserved in its hold (`inflight`), and
what the message did not need is given back when it has arrived. The other messages wait unread; HTTP/2 lets their
clients send no more than a window.

The life of a message (`TRANSITIONS`):

| state | event | next state |
|---|---|---|
| WAITING | a slot is free, and there is memory | RECEIVING |
| WAITING | there is no memory, too many wait, or its deadline passes | REFUSED |
| RECEIVING | it has arrived | ARRIVED |
| RECEIVING | it is silent or slow while others wait, or its deadline passes | REFUSED |
| WAITING, RECEIVING | its client has left, or sends no message | LEFT |

A message that was sent together with its call, as nearly all are, arrives in the next turns of the event loop. A call
whose client sends nothing (it is *silent*) or too slowly keeps its slot only while no other call waits: then it is
refused within `SILENT_SECONDS`. A message whose bytes are all here is not slow, however long it waits to be inflated.
Connections take turns, one call at a time, in the order of their ranks (`_Rank`). If too many calls wait, one is
refused: the newest of the connection that has most of them.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from lengthwise.connections.fair_slots import FairSlots, Job
from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.errors import DeadlineExceeded, InflightFull, RequestError

SHARE: Final = 2  # 1 / `SHARE` of the memory for all calls may be reserved for messages being received
# While other calls wait, a message
SILENT_SECONDS: Final = 0.1  # must have begun to arrive after this time,
MIN_BYTES_PER_SECOND: Final = 262_144  # arrive at this speed from then on,
PATIENCE_SECONDS: Final = 2.0  # and be complete after this time.
MAX_WAITING: Final = 6144  # calls that wait for a slot; beyond it, calls are refused
_KNOWN_CONNECTIONS: Final = 8192  # connections whose ranks are remembered; of more, the oldest ones count as new


class _Rank(enum.IntEnum):
    """How the last message of a connection arrived. Calls of the lowest rank are received first."""

    PROMPT = 0  # completely
    NEW = 1  # there was none so far
    SILENT = 2  # too slowly or not at all


class MessageState(enum.Enum):
    """What becomes of a message."""

    WAITING = "for a slot"
    RECEIVING = "it has a slot, and memory for the largest message"
    ARRIVED = "it came"
    LEFT = "its client has left, or sends no message"
    REFUSED = "its call gets an error"


WAITING, RECEIVING = MessageState.WAITING, MessageState.RECEIVING
ARRIVED, LEFT, REFUSED = MessageState.ARRIVED, MessageState.LEFT, MessageState.REFUSED
TRANSITIONS: Final[dict[MessageState, tuple[MessageState, ...]]] = {
    WAITING: (RECEIVING, LEFT, REFUSED),
    RECEIVING: (ARRIVED, LEFT, REFUSED),
}
"""The states that may follow; a state without an entry is the last one."""


class IncomingMessage(Job):
    """One message from its call to its end. Times are those of `time.monotonic`.

    Args:
        receiving: The slots; the message enters them at once.
        client: The address and port of its connection.
        hold: The memory of its call, in which that for the largest message is reserved.
        deadline: When the message must have arrived.
        begin: Called when the message is received from now on.
        refuse: Called with the error when the message is refused:

            - `InflightFull`: there is no memory for it, or too many messages wait;
            - `DeadlineExceeded`: the deadline has passed, or its client is silent or slow while others wait.
    """

    peer: str
    state = WAITING
    began = 0.0  # when it got its slot
    measured: float | None = None  # when its connection's bytes were first counted, because others waited
    received: int | None = None  # how many bytes these were; None if that is not known
    is_complete = False  # whether all its bytes are here; it may wait to be inflated then

    def __init__(
        self,
        receiving: Receiving,
        client: str,
        hold: Hold,
        deadline: float,
        begin: Callable[[], object],
        refuse: Callable[[RequestError], object],
    ) -> None:
        super().__init__(client, 1, receiving.ranks.get(client, _Rank.NEW))
        self._receiving = receiving
        self._hold = hold
        self._begin = begin
        self._refuse = refuse
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self.refuse_late)
        receiving.add(self)

    def begin(self) -> bool:
        """Reserves memory for the largest message, and begins to receive; without memory, refuses the message."""
        try:
            self._hold.set(self._receiving.reserved_bytes)
        except RequestError as error:
            self.enter(REFUSED, error)
            return False
        self.began = time.monotonic()
        self.enter(RECEIVING)
        self._begin()
        return True

    def enter(self, state: MessageState, error: RequestError | None = None) -> None:
        """Enters a state that may follow the present one; does nothing if it may not, as when the message is over.

        A state that is the last one gives the slot back, or leaves the line. `error` is that of a refusal.
        """
        before = self.state
        if state not in TRANSITIONS.get(before, ()):
            return
        self.state = state
        if state is RECEIVING:
            return
        self._timer.cancel()
        refuse = self._refuse
        del self._begin, self._refuse, self._timer  # they refer to the call
        self._receiving.remove(self, before)
        if error is not None:
            refuse(error)

    def refuse_late(self) -> None:
        """Refuses a message that has waited for a slot until its deadline, or that arrives too late or too slowly."""
        reason = "the message did not come in time"
        if self.is_complete or self.state is WAITING:
            missed = "inflated" if self.is_complete else "received"
            reason = f"the deadline passed before the message could be {missed}"
        self.enter(REFUSED, DeadlineExceeded(reason))

    def complete(self) -> None:
        """Notes that all bytes are here: the message is not slow from now on."""
        self.is_complete = True


class Receiving(FairSlots[IncomingMessage]):
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
        self.reserved_bytes = 2 * max_bytes  # gRPC's own copy, and the copy for Python
        of_memory = max(1, inflight.max_bytes // len(inflight.cells) // SHARE // self.reserved_bytes)
        super().__init__(slots or of_memory, MAX_WAITING)
        self._max_bytes = max_bytes
        self._received_bytes = received_bytes
        # By client, for its next messages; the one updated longest ago is first
        self.ranks: OrderedDict[str, _Rank] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None  # of the next `_end_slow`, while messages wait

    def expected_bytes(self, client: str) -> int:
        """The largest number of bytes that may arrive for the messages of a client that have a slot."""
        return self._max_bytes * sum(message.peer == client for message in self.running)

    def add(self, message: IncomingMessage) -> None:
        """Gives a message a slot, or has it wait; then refuses another one if too many wait, and those too slow."""
        if (refused := self.join(message)) is not None:
            refused.enter(REFUSED, InflightFull("too many calls wait to send their messages", retry_after_seconds=1))
        if self.queue and self._timer is None:
            self._end_slow()  # gives the slots of slow messages to those that wait

    def remove(self, message: IncomingMessage, before: MessageState) -> None:
        """Takes back the slot of a message that is over, or removes it from those that wait; `before`: its state then.

        If it had a slot and its bytes did not come, the next calls of its connection are received last.
        """
        if before is RECEIVING:
            came = message.is_complete or message.state is ARRIVED
            client, rank = message.peer, _Rank.PROMPT if came else _Rank.SILENT
            if self.ranks.pop(client, _Rank.NEW) is not rank:
                self.set_rank(client, rank)
            self.ranks[client] = rank
            if len(self.ranks) > _KNOWN_CONNECTIONS:  # the one updated longest ago counts as new again
                self.ranks.popitem(last=False)
        self.leave(message)

    def _end_slow(self) -> None:
        """While messages wait: refuses those in slots that arrive too slowly, and calls itself again after a time."""
        self._timer = None
        if self.queue:
            now = time.monotonic()
            for message in [message for message in self.running if self._is_slow(message, now)]:
                message.refuse_late()
            self._timer = asyncio.get_running_loop().call_later(SILENT_SECONDS / 2, self._end_slow)

    def _is_slow(self, message: IncomingMessage, now: float) -> bool:
        """Whether a message in a slot arrives too slowly.

        - If all its bytes are here, it does not.
        - After `PATIENCE_SECONDS` in the slot it is.
        - At the first call before that, the bytes of its connection are counted; it is not.
        - From `SILENT_SECONDS` on it is, if fewer bytes than `MIN_BYTES_PER_SECOND` came since that count.
        """
        if message.is_complete:
            return False
        seconds = now - message.began
        if seconds >= PATIENCE_SECONDS:
            return True
        received = self._received_bytes(message.peer)
        if message.measured is None:
            message.measured, message.received = now, received
            return False
        if received is None or message.received is None or seconds < SILENT_SECONDS:
            return False
        return received - message.received < MIN_BYTES_PER_SECOND * (now - message.measured)
