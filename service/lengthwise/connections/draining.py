"""The end of a server's connections: each gets its answer, or is told, and none that owes nothing holds the exit.

| a connection | while the server drains |
|---|---|
| is owed an answer | keeps its place until the drain ends; then it is told 503 |
| is new, and has said nothing yet | is closed after `NEW_SECONDS`: whoever connects has something to say |
| is kept alive, and says nothing | is closed after `QUIET_SECONDS`: a busy client asks again sooner, and is told |
| does not read what was written | is cut off when nothing of it has left for `UNREAD_SECONDS` |
| has been told everything | has `PARTING_SECONDS` to end its own side |

No time is longer than what is left of the drain.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

NEW_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 2.0
UNREAD_SECONDS: Final = 2.0
PARTING_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.02
"""How often it is looked at: that a client reads, and that a request is arriving, is told by no event."""


class Connection(Protocol):
    """What is asked of a connection."""

    transport: asyncio.Transport
    cycle: Any
    """The last request and its answer; None where nothing was asked yet."""

    @property
    def owes(self) -> bool:
        """Whether a request has begun here that has no answer yet."""

    def end_unfinished(self) -> None:
        """Tells whoever has not said all of a request that the server ends."""


class Draining:
    """Waits for connections, and ends those that nothing is owed to.

    Args:
        connections: Those of a server, as they come and go.
        pending: How many are on their way to be one of them.
        clock: Seconds.
    """

    def __init__(
        self, connections: Collection[Connection], pending: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._connections = connections
        self._pending = pending
        self._clock = clock
        self._since: dict[Connection, tuple[tuple[bool, bool, int], float]] = {}

    async def wait(self, *, until: float, only: Collection[Connection] | None = None) -> None:
        """Waits until the connections are gone.

        Args:
            until: When to wait no longer, on the clock.
            only: Wait for these, and for no others.
        """
        while self._clock() < until:
            left = self._look()
            if not (left or self._pending() if only is None else left.intersection(only)):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def tell(self) -> None:
        """Tells those that are left that the server ends."""
        for connection in list(self._connections):
            if connection.owes:
                connection.end_unfinished()
            elif not _arriving(connection.transport):
                connection.transport.close()

    def abort(self) -> None:
        """Cuts off those that are left."""
        for connection in list(self._connections):
            connection.transport.abort()

    def _look(self) -> set[Connection]:
        """Ends those that have had their time; returns those that are left."""
        now = self._clock()
        there = set(self._connections)
        self._since = {connection: since for connection, since in self._since.items() if connection in there}
        for connection in there:
            transport = connection.transport
            owes, closing, unsent = connection.owes, transport.is_closing(), transport.get_write_buffer_size()
            state = (owes, closing, unsent)
            before, since = self._since.setdefault(connection, (state, now))
            if before != state:
                self._since[connection] = (state, now)
            elif unsent or closing:
                if now - since > (UNREAD_SECONDS if unsent else PARTING_SECONDS):
                    transport.abort()
            elif not owes and now - since > _silence(connection) and not _arriving(transport):
                transport.close()
        return there


def _silence(connection: Connection) -> float:
    """How long a connection may say nothing."""
    return NEW_SECONDS if connection.cycle is None else QUIET_SECONDS


def _arriving(transport: asyncio.Transport) -> bool:
    """Whether there are bytes that the event loop has not read yet."""
    if transport.is_closing():
        return False
    poller = select.poll()
    poller.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poller.poll(0))
