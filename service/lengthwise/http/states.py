"""The states of a connection, of which `lengthwise.http.connection` has the table, and what it sees of a request."""

from __future__ import annotations

import enum
from typing import Final, Protocol


class State(enum.Enum):
    """What of a request is read next."""

    IDLE = "its first byte"
    HEAD = "the rest of its header block"
    UPGRADE = "the same header block again, without the header that asks for another protocol"
    BODY = "the rest of its body, and trailers"
    ENDING = "nothing: the connection ends behind the answers to earlier requests"
    BROKEN = "nothing: the same, and the refusal answers the last request, whose body was being read"
    CLOSED = "nothing: the connection has ended"


# Names of the module: the member of an enum takes longer to look up than to compare.
IDLE, HEAD, UPGRADE, BODY = State.IDLE, State.HEAD, State.UPGRADE, State.BODY
ENDING, BROKEN, CLOSED = State.ENDING, State.BROKEN, State.CLOSED
ENDED: Final = (ENDING, BROKEN, CLOSED)


class OpenRequest(Protocol):
    """One request and its answer, as a connection sees it: an `AsgiRequest`, or a `FastRequest`."""

    keep_alive: bool
    """Whether the connection stays open after the answer."""
    response_complete: bool
    """Whether the answer was written, or never will be."""

    @property
    def response_started(self) -> bool:
        """Whether a part of the answer was written."""

    def client_left(self) -> None:
        """The connection is lost."""

    def refused(self, status: int) -> None:
        """The connection ends after writing this status in the place of the answer."""
