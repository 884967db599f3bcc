"""The end of a server's connections: each gets its answer or a refusal, and idle ones do not delay the exit.

| a connection | while the server drains |
|---|---|
| waits for an answer | stays open until the drain ends; then it gets 503 |
| is new, and has sent nothing yet | is closed after `NEW_SECONDS`: a client that connects is about to send a request |
| is kept alive, and sends nothing | is closed after `QUIET_SECONDS`: a busy client sends sooner, and is answered |
| does not read what was written | is aborted when nothing of that was sent for `UNREAD_SECONDS` |
| was closed by the server | has `PARTING_SECONDS` to end its own side |

No connection has longer than the drain itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from lengthwise.connections.unread import has_arrived

NEW_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 2.0
UNREAD_SECONDS: Final = 2.0
PARTING_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.02  # between two checks: no event reports that a client reads, or that a request arrives


class DrainedConnection(Protocol):
    """The interface of a connection that is drained."""

    transport: asyncio.Transport
    newest: Any  # the last request and its answer

    @property
    def owes(self) -> bool:
        """Whether a request has begun and has no answer yet."""

    def refuse(self, status: int | None, detail: str) -> None:
        """Ends the connection after the answers to earlier requests; with a `status`, a refusal is written last."""


class ConnectionDrain:
    """Waits until a server's connections end, and closes those that wait for nothing.

    `pending` counts the sockets that become connections soon. Times are those of the event loop, in seconds.
    """

    def __init__(self, connections: Collection[DrainedConnection], pending: Callable[[], int]) -> None:
        self._connections = connections
        self._pending = pending
        self._clock = asyncio.get_running_loop().time
        # For each connection its last state (owes an answer, is closing, unsent bytes), and since when it has it.
        self._since: dict[DrainedConnection, tuple[tuple[bool, bool, int], float]] = {}

    async def wait(self, *, deadline: float, only: Collection[DrainedConnection] | None = None) -> None:
        """Waits until connections have ended, but not beyond `deadline`.

        These are the connections of `only`; without it all of them, the pending ones included. Meanwhile it closes the
        connections that wait for nothing.
        """
        while self._clock() < deadline:
            open_connections = self._close_idle()
            left = (open_connections or self._pending()) if only is None else open_connections.intersection(only)
            if not left:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def refuse(self) -> None:
        """Refuses the unfinished requests of the open connections with 503, and closes idle connections."""
        for connection in list(self._connections):
            if connection.owes:
                connection.refuse(503, "the server is shutting down")
            elif not has_arrived(connection.transport):
                connection.transport.close()

    def abort(self) -> None:
        """Aborts the connections that are still open."""
        for connection in list(self._connections):
            connection.transport.abort()

    def _close_idle(self) -> set[DrainedConnection]:
        """Closes or aborts the connections whose time, by the table of the module, is over.

        Returns all connections that were open when it began.
        """
        now = self._clock()
        open_connections = set(self._connections)
        self._since = {connection: since for connection, since in self._since.items() if connection in open_connections}
        for connection in open_connections:
            transport = connection.transport
            owes, closing, unsent = connection.owes, transport.is_closing(), transport.get_write_buffer_size()
            state, idle_limit = (owes, closing, unsent), NEW_SECONDS if connection.newest is None else QUIET_SECONDS
            # A connection whose state has changed since the last look is not late.
            last_state, since = self._since.setdefault(connection, (state, now))
            if last_state != state:
                self._since[connection] = (state, now)
            elif unsent or closing:
                if now - since > (UNREAD_SECONDS if unsent else PARTING_SECONDS):
                    transport.abort()
            elif not owes and now - since > idle_limit and not has_arrived(transport):
                transport.close()
        return open_connections
