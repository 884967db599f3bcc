"""The states of a connection; `lengthwise.http.connection` has the table of their transitions."""

from __future__ import annotations

import enum
from typing import Final


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
