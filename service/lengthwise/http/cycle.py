"""A request that goes through ASGI, and the flow control of its connection: uvicorn's own classes with two additions.

uvicorn's cycle of request and response does not report whether an answer was sent, and its flow control resumes reading
while the client has answers to read. Both are changed here. Private parts of uvicorn (0.54) that are used here:
`RequestResponseCycle` with `disconnected`, `response_complete`, `waiting_for_100_continue` and `message_event`;
`FlowControl` with `read_paused` and `write_paused`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lengthwise.protocols.body import Delivery

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGISendEvent


class Flow(FlowControl):
    """When a connection is read from: not while its client has answers to read.

    Attributes:
        discarding: What still arrives is dropped, so reading is not paused any more.
        resumed: Reading was paused and resumed since this was last set to False.
        behind: What was read is not parsed yet: nothing more is read until it is.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.discarding = False
        self.resumed = False
        self.behind = False
        self._pauses = False  # whether reading is to be paused for another reason too

    def fall_behind(self) -> None:
        """Pauses reading until `catch_up`, whatever else pauses and resumes it."""
        self._pauses = self.read_paused
        self.pause_reading()
        self.behind = True

    def catch_up(self) -> None:
        """What was read is parsed."""
        self.behind = False
        if not self._pauses:
            self.resume_reading()

    def pause_reading(self) -> None:
        """Pauses reading."""
        if self.behind:
            self._pauses = True
        elif not self.discarding:
            super().pause_reading()

    def resume_reading(self) -> None:
        """Resumes reading, unless the client has answers to read first."""
        if self.behind:
            self._pauses = False
        elif self.read_paused and not self.write_paused:
            self.resumed = True
            super().resume_reading()

    def lost(self) -> bool:
        """Whether the client reset the connection while reading was paused, which asyncio does not notice.

        Such a connection ends here: the kernel reports a reset once, and the connection would stay open for ever.
        """
        if not self.read_paused:
            return False
        connection = self._transport.get_extra_info("socket")
        if connection is None or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            return False
        self._transport.abort()
        return True

    def discard(self) -> None:
        """Reads from now on without pause, because what arrives is dropped.

        If a socket has unread bytes when it is closed, the connection is reset, and answers on their way are lost.
        """
        self.discarding = True
        self.behind = False
        super().resume_reading()

    def end(self) -> None:
        """Called when the client sends no more: pausing and resuming then do nothing."""
        self.discarding = True
        self.read_paused = False


class Cycle(RequestResponseCycle):
    """One request through ASGI, and its answer.

    Args:
        options: The arguments of uvicorn's class.

    Attributes:
        delivery: Whether the answer was sent; the same object is the scope's extension.
    """

    flow: Flow

    def __init__(self, *, delivery: Delivery, **options: Any) -> None:
        super().__init__(**options)
        self.delivery = delivery

    async def send(self, message: ASGISendEvent) -> None:
        """Writes a part of the answer; on a connection that is closing it is dropped, and does not count as written."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.transport.is_closing() or self.flow.lost():
            self.disconnected = True
        await super().send(message)
        self.delivery.answered = self.response_complete

    def client_left(self) -> None:
        """Called when the connection is lost: tells the application at its next receive, and drops what it sends."""
        self.disconnected = True
        self.message_event.set()

    def refused(self, status: int) -> None:
        """Called when the connection ends after writing this status in the place of the answer."""
        self.delivery.refused = status
        self.waiting_for_100_continue = False
        self.client_left()
