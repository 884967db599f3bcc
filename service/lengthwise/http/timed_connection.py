"""One connection without its requests: its timers, what it writes by itself, and how it ends once all is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import uvicorn

from lengthwise.connections.closing import LINGER_SECONDS, gently
from lengthwise.connections.unread import PATIENCE_SECONDS, UnreadWatch, unread_bytes
from lengthwise.http.fast_request import DEFAULT_LINES, response
from lengthwise.http.flow import Flow
from lengthwise.protocols import problems

UNREAD_SECONDS: Final = 0.1
"""After which time a connection that seemed idle, and has bytes to read, is looked at again."""
HALF_CLOSED_SECONDS: Final = 2.0


class TimedConnection(asyncio.Protocol):
    """The timers of a connection, of which one runs at a time beside that of keep-alive, and its end.

    Args:
        server_state: The connections and tasks of the server.
        loop: The event loop.
    """

    transport: asyncio.Transport
    flow: Flow
    client: tuple[str, int] | None = None  # its address

    def __init__(self, server_state: uvicorn.server.ServerState, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop or asyncio.get_running_loop()
        self.server_state = server_state
        self._addresses: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive_timer: asyncio.TimerHandle | None = None
        self._unread: UnreadWatch | None = None

    @property
    def default_headers(self) -> bytes:
        """The header lines of every response: the date."""
        return DEFAULT_LINES.of(self.server_state.default_headers)

    def _made(self, transport: asyncio.Transport) -> None:
        """The transport is here."""
        self.transport = gently(transport)
        self.flow = Flow(self.transport)
        self.client = _address(transport.get_extra_info("peername"))
        self._addresses = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": self.client,
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
        }

    def _close(self) -> None:
        """Ends the connection when the client has read what was written (`closing`), or reads too slowly."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        if self._unread is None:
            self._unread = UnreadWatch(self.loop, self.transport, self.transport.abort)
        self._unread.start(PATIENCE_SECONDS)
        if self.transport.is_closing() and not self.transport.can_write_eof():
            self._start_timer(LINGER_SECONDS, self._has_not_parted)

    def _has_not_parted(self) -> None:
        """Over TLS, a client that has read everything has some time to end its own side (see `closing`)."""
        if unread_bytes(self.transport):
            self._start_timer(LINGER_SECONDS, self._has_not_parted)
        else:
            self.transport.abort()

    def _write_refusal(self, status: int, detail: str) -> None:
        status, body, headers = problems.last_refusal(status, detail)
        self.transport.write(response(status, self.default_headers, headers, body))

    def _has_left(self) -> None:
        if self.flow.write_paused:  # it reads an answer; `UnreadWatch` says whether fast enough
            self._start_timer(HALF_CLOSED_SECONDS, self._has_left)
        else:
            self.transport.abort()

    def _was_paused(self) -> bool:
        """Whether the connection was not read from for a part of the time, so that the client could not send."""
        return self.flow.read_paused or self.flow.resumed

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self.flow.resumed = False
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_keep_alive_timer(self) -> None:
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
            self._keep_alive_timer = None


def _address(name: Any) -> tuple[str, int] | None:
    """The host and the port of a socket's name, as ASGI has them."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
