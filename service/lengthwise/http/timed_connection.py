"""A connection without its requests: its state, flow control, timers, its own answers, and how it ends.

`Flow` decides when the socket is read; `TimedConnection` is the base of `http.connection.Connection`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from lengthwise.connections.closing import LINGER_SECONDS, gently
from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.connections.unread import PATIENCE_SECONDS, UnreadWatch, unread_bytes
from lengthwise.http.fast_request import common_lines, response
from lengthwise.http.states import IDLE, TRANSITIONS, Event
from lengthwise.protocols import problems

UNREAD_SECONDS: Final = 0.1  # until a connection is checked again that seemed late but has bytes to read
HALF_CLOSED_SECONDS: Final = 2.0  # to answer a client that has ended its side
# Why reading is paused (`Flow.reasons`): a request or body waits for its turn; received data are not parsed yet.
WAITS, UNPARSED = "waits", "unparsed"


class Flow:
    """Flow control of one connection: it is not read from while its client has answers to read."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable: asyncio.Event | None = None  # set when writing resumes; None while no `drain` waits
        self.read_paused = False  # for one of the reasons, or because writing is paused
        self.write_paused = False  # the client has to read before more is written
        self.reasons = set[str]()  # why reading is paused: `WAITS`, `UNPARSED`
        self._discarding = False  # data that still arrive are dropped, so reading is not paused any more
        self.resumed = False  # reading was paused and resumed since this was last set to False

    def _apply(self) -> None:
        """Pauses reading of the transport if writing is paused or there is another reason; else resumes it."""
        paused = not self._discarding and (self.write_paused or bool(self.reasons))
        if paused and not self.read_paused:
            self._transport.pause_reading()
        elif self.read_paused and not paused:
            self.resumed = True
            self._transport.resume_reading()
        self.read_paused = paused

    def pause_reading(self, reason: str = WAITS) -> None:
        """Pauses reading until `resume_reading` for the same reason."""
        self.reasons.add(reason)
        self._apply()

    def resume_reading(self, reason: str = WAITS) -> None:
        """Resumes reading, unless it is paused for another reason."""
        self.reasons.discard(reason)
        self._apply()

    def discard(self) -> None:
        """Never pauses reading from now on; the caller drops the data that arrive.

        If a socket has unread bytes when it is closed, the connection is reset, and answers on their way are lost.
        """
        self._discarding = True
        self._apply()

    def end(self) -> None:
        """Called when the client sends no more: pausing and resuming then have no effect."""
        self._discarding = True
        self.read_paused = False

    def pause_writing(self) -> None:
        """Called when the client does not read: `drain` waits, and the connection is not read from."""
        self.write_paused = True
        self._apply()

    def resume_writing(self) -> None:
        """Called when the client reads again, or is gone: wakes `drain`."""
        self.write_paused = False
        self._apply()
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    async def drain(self) -> None:
        """Waits until the client has read enough for more to be written."""
        while self.write_paused:
            self._writable = self._writable or asyncio.Event()
            await self._writable.wait()

    def lost(self) -> bool:
        """Aborts the connection, and returns True, if the client reset it while reading was paused.

        asyncio does not notice such a reset, and the kernel reports it (SO_ERROR) only once: without the abort the
        connection would stay open for ever.
        """
        if not self.read_paused:
            return False
        connection = self._transport.get_extra_info("socket")
        if connection is None or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            return False
        self._transport.abort()
        return True


class TimedConnection(asyncio.Protocol):
    """The state of a connection, its timers, and its end.

    At most two timers run: the one of keep-alive, and `_timer` for what the connection waits for (a head, a body, the
    end).
    """

    transport: asyncio.Transport
    flow: Flow
    client: tuple[str, int] | None = None  # the host and the port of the client

    def __init__(self, server_state: uvicorn.server.ServerState, inflight: Inflight) -> None:
        self._unwritten = Hold(inflight)  # memory of the answers that the client has not read yet
        self.state = IDLE  # what is read next
        self.loop = asyncio.get_running_loop()
        self.server_state = server_state
        self._addresses: dict[str, Any] = {}  # entries of ASGI's scope
        self._timer: asyncio.TimerHandle | None = None  # None while it does not run
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._unread: UnreadWatch | None = None  # made when it is needed

    def enter(self, event: Event) -> None:
        """Enters the state that follows the present one at an event; only here the state changes."""
        self.state = TRANSITIONS[event].get(self.state, self.state)

    def _set_transport(self, transport: asyncio.Transport) -> None:
        """Sets the transport, with its flow control and the addresses of both sides."""
        self.transport = gently(transport)  # closes in two steps
        self.flow = Flow(self.transport)
        self.client = _address(transport.get_extra_info("peername"))
        self._addresses = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": self.client,
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
        }

    def _close(self) -> None:
        """Ends the connection once the client has read what was written (`closing`), or has read too slowly."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        """Watches that the client reads what was written, and aborts the connection if it reads too slowly.

        Over TLS, a closing connection is also aborted if the client has read everything, and does not end its own side
        within `LINGER_SECONDS`; without TLS, `connections.closing` does that.
        """
        if self._unread is None:
            self._unread = UnreadWatch(self.loop, self.transport, self.transport.abort)
        self._unread.start(PATIENCE_SECONDS)
        if self.transport.is_closing() and not self.transport.can_write_eof():
            self._abort_later(LINGER_SECONDS, lambda: unread_bytes(self.transport) > 0)

    def pause_writing(self) -> None:
        """Called when the client does not read.

        Limits its time, stops reading from it, and counts its answers as memory.
        """
        self.flow.pause_writing()
        self._watch_unread()
        self._unwritten.holds(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Called when the client has read nearly all of its answers: undoes `pause_writing`."""
        self._unwritten.close()
        self.flow.resume_writing()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.stop()

    def _write_refusal(self, status: int, detail: str) -> None:
        """Writes the refusal that ends the connection, a whole response."""
        status, body, headers = problems.last_refusal(status, detail)
        self.transport.write(response(status, common_lines(tuple(self.server_state.default_headers)), headers, body))

    def _abort_later(self, seconds: float, is_reading: Callable[[], bool]) -> None:
        """Aborts the connection after `seconds`, unless `is_reading()` is True then: then it waits as long again.

        A client that reads an answer may need longer; `UnreadWatch` limits how slowly it may read.
        """

        def abort_unless_reading() -> None:
            """Called when the timer ends."""
            if is_reading():
                self._abort_later(seconds, is_reading)
            else:
                self.transport.abort()

        self._start_timer(seconds, abort_unless_reading)

    def _was_paused(self) -> bool:
        """Whether reading was paused for a part of the timer's time, so that the client could not send."""
        return self.flow.read_paused or self.flow.resumed

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        """Calls `action` after `seconds`, in place of the timer that runs."""
        self._stop_timer()
        self.flow.resumed = False
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timers(self) -> None:
        """Stops both timers, as the connection has ended."""
        self._stop_timer()
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(name: Any) -> tuple[str, int] | None:
    """The host and the port of a socket's name; None for a Unix socket's, which is a path."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
