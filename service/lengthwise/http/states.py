"""The states of a connection as data: what it reads next, and which event takes it to which state.

| state | event | next state |
|---|---|---|
| IDLE, UPGRADE | the first byte of a request, or of its header block once more | HEAD |
| HEAD | the header block is complete and within bounds | BODY |
| HEAD | the header block is complete and asks for another protocol | UPGRADE |
| BODY | the body is complete | IDLE |
| IDLE, HEAD, UPGRADE, BODY | a bound is exceeded, or the client sends no more | ENDING |
| BODY | the same, before the answer to this request has begun | BROKEN |
| ENDING, BROKEN | every earlier request has its answer | CLOSED |
| any | an answer ended the connection, it was lost, or there are too many | CLOSED |

`TimedConnection.enter` alone changes the state; the reader of requests reports events to it. In a state without a row,
an event changes nothing.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """What the connection reads next."""

    IDLE = "its first byte"
    HEAD = "the rest of its header block"
    UPGRADE = "the same header block again, without the header that asks for another protocol"
    BODY = "the rest of its body, and trailers"
    ENDING = "nothing: the connection ends after the answers to earlier requests"
    BROKEN = "nothing: as ENDING, and the refusal answers the last request, whose body was not complete"
    CLOSED = "nothing: the connection has ended"


# As names of the module, because `State.IDLE` takes longer to look up than to compare, for each piece of data.
IDLE, HEAD, UPGRADE, BODY = State.IDLE, State.HEAD, State.UPGRADE, State.BODY
ENDING, BROKEN, CLOSED = State.ENDING, State.BROKEN, State.CLOSED
ENDED: Final = (ENDING, BROKEN, CLOSED)


class Event(enum.Enum):
    """What takes a connection to another state."""

    FIRST_BYTE = "the first byte of a request, or of its header block once more"
    HEAD_COMPLETE = "the header block is complete and within bounds"
    ASKS_FOR_UPGRADE = "the header block is complete and asks for another protocol"
    BODY_COMPLETE = "the body is complete"
    REFUSED = "a bound is exceeded, or the client sends no more"
    REFUSED_UNANSWERED = "the same, before the answer to this request has begun"
    ALL_ANSWERED = "every earlier request has its answer"
    ENDED = "an answer ended the connection, it was lost, or there are too many"


TRANSITIONS: Final[dict[Event, dict[State, State]]] = {
    Event.FIRST_BYTE: {IDLE: HEAD, UPGRADE: HEAD},
    Event.HEAD_COMPLETE: {HEAD: BODY},
    Event.ASKS_FOR_UPGRADE: {HEAD: UPGRADE},
    Event.BODY_COMPLETE: {BODY: IDLE},
    Event.REFUSED: dict.fromkeys((IDLE, HEAD, UPGRADE, BODY), ENDING),
    Event.REFUSED_UNANSWERED: {BODY: BROKEN},
    Event.ALL_ANSWERED: dict.fromkeys((ENDING, BROKEN), CLOSED),
    Event.ENDED: dict.fromkeys(State, CLOSED),
}
"""For each event the state before it, and the state after it."""
