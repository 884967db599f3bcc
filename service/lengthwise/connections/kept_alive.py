"""Connections that are kept open for their client's next request, and give their places to new ones when all are taken.

A proxy keeps its connections open for about a minute, and loses a request that it sends while this side closes one. So
the server waits longer (`keep_alive_seconds`). In a crowd, a new connection gets the place of the one that has been
idle longest, unless that was used within `LEAST_IDLE_SECONDS`.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, Protocol

LEAST_IDLE_SECONDS: Final = 5.0  # that a connection is kept open for its next request in any case
_LOOKS: Final = 8  # connections that are looked at: a request may just have arrived on the first ones


class KeptConnection(Protocol):
    """A connection that was answered and may send another request."""

    def give_way(self) -> bool:
        """Ends the connection at once; returns False, and does nothing, if its next request has begun."""


class KeptAlive(dict[KeptConnection, float]):
    """The idle connections of one server, the one that has been idle longest first, and since when, in seconds."""

    def make_room(self, now: float) -> bool:
        """Ends the connection that has been idle longest; returns whether there was one that may end."""
        for connection, since in list(islice(self.items(), _LOOKS)):
            if now - since < LEAST_IDLE_SECONDS:
                return False
            del self[connection]
            if connection.give_way():
                return True
        return False
