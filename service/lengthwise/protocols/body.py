"""A request's body: read within its limit, inflated within the same limit, and counted while it is there.

What a body holds is counted as it comes (`inflight`). An inflated one is counted before it is inflated, a piece
at a time: what a short body will be, nobody knows before.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from starlette.types import Receive, Scope

from lengthwise.errors import DeadlineExceeded, InvalidRequest, Problem, TooLarge, UnsupportedMedia
from lengthwise.inflight import Hold

MAX_GZIP_MEMBERS: Final = 1024
"""Each member costs a fresh inflater, so a body of a million empty ones would hold a core for minutes."""
PIECE_BYTES: Final = 65_536
"""A body is inflated by pieces of at most so many bytes, of as many bytes at most."""
_PIECES_AT_ONCE: Final = 32
"""How many pieces a thread inflates before the event loop counts the next ones."""


CLIENT_LEFT: Final = 499
"""The status that a call counts with of which nothing left."""
OUTCOME: Final = "lengthwise.outcome"
"""ASGI extension: the request's `Outcome`."""


class ClientLeft(Exception):
    """The client closed the connection before its answer was there."""


class Outcome:
    """What became of the answer to a request that came through ASGI.

    Attributes:
        answered: The connection has taken the whole answer.
        refused: The status that the connection told in the answer's place; None where it told none.
    """

    __slots__ = ("answered", "refused")

    def __init__(self) -> None:
        self.answered = False
        self.refused: int | None = None


def told(scope: Scope, status: int) -> int:
    """The status that a client was told: its answer's own, or the connection's refusal, or `CLIENT_LEFT` for neither.

    Args:
        scope: ASGI's.
        status: The answer's.
    """
    outcome: Outcome | None = scope.get("extensions", {}).get(OUTCOME)
    if outcome is None or outcome.answered:
        return status
    return outcome.refused or CLIENT_LEFT


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """ASGI's header pairs by name; of a header given twice, the last."""
    return dict(raw)


async def read_body(
    receive: Receive, headers: dict[bytes, bytes], max_bytes: int, hold: Hold, *, late_at: float = float("inf")
) -> bytes:
    """Reads a body as it was sent.

    Args:
        receive: ASGI's.
        headers: By lower-case name.
        max_bytes: Largest body.
        hold: Holds what has come.
        late_at: When its sender is late, on the clock of `time.monotonic`: from then on it is read no further where
            others need the room.

    Raises:
        TooLarge: It is larger, or says so.
        InflightFull: There is no room for it now.
        DeadlineExceeded: It is late, and others need the room.
        UnsupportedMedia: A content encoding other than gzip.
        ClientLeft: The client closed the connection.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b"gzip", b""):
        raise UnsupportedMedia("content-encoding must be gzip, or none")
    announced = headers.get(b"content-length")
    if announced is not None and announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large(max_bytes)
    gathered = bytearray()  # not a list: a body that trickles in byte by byte would cost fifty times its size
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        if len(gathered) + len(part) > max_bytes:
            raise too_large(max_bytes)
        hold.grow(len(part))
        if not message.get("more_body", False):
            break
        gathered += part
        if hold.crowded and time.monotonic() > late_at:
            raise DeadlineExceeded("the deadline passed before the whole body was there")
    return bytes(gathered + part) if gathered else part


def is_packed(headers: dict[bytes, bytes]) -> bool:
    """Whether a body is to be inflated."""
    return headers.get(b"content-encoding", b"").strip().lower() == b"gzip"


class Inflating:
    """A gzip body, of one member or several, on its way to be inflated.

    Args:
        body: As it was sent.
        max_bytes: Most bytes that it may have when it is inflated.
        hold: Holds the bytes, those to come before they are there.
    """

    def __init__(self, body: bytes, max_bytes: int, hold: Hold) -> None:
        self._hold = hold
        self._sent = len(body)
        self._steps = _inflated(body, max_bytes)
        self._pieces: list[bytes] = []
        self._size = 0

    def at_once(self) -> bytes | None:
        """The inflated body where that is one piece, made on the event loop; None where it is more.

        Raises as `inflated` does.
        """
        self._hold.grow(2 * PIECE_BYTES)
        if self._some(2) < 2:  # one piece, and nothing behind it
            return self._whole()
        return None

    async def inflated(self) -> bytes:
        """The inflated body, made in a thread.

        Raises:
            TooLarge: It inflates to more than the most; no more than that is ever held.
            InflightFull: There is no room for it now.
            InvalidRequest: It is no gzip, ends early, or has more members than anybody needs.
        """
        while True:
            self._hold.set(self._sent + self._size + _PIECES_AT_ONCE * PIECE_BYTES)
            if await asyncio.to_thread(self._some, _PIECES_AT_ONCE) < _PIECES_AT_ONCE:
                return await asyncio.to_thread(self._whole)

    def _some(self, count: int) -> int:
        """Inflates so many more pieces; how many there were."""
        made = list(islice(self._steps, count))
        self._pieces += made
        self._size += sum(map(len, made))
        return len(made)

    def _whole(self) -> bytes:
        return b"".join(self._pieces)


def _inflated(body: bytes, max_bytes: int) -> Iterator[bytes]:
    """The inflated body by pieces; see `Inflating`."""
    size = 0
    rest = memoryview(body)
    for _ in range(MAX_GZIP_MEMBERS):
        inflater = zlib.decompressobj(wbits=31)
        made, most = b"", 1
        while not inflater.eof:
            if not rest and len(made) < most:  # else more may come of what it was given
                raise InvalidRequest([Problem("", "the gzip body ends before its end")])
            # By slices, because what follows a member is copied at its end.
            given = rest[:PIECE_BYTES]
            most = min(PIECE_BYTES, max_bytes - size + 1)
            try:
                made = inflater.decompress(given, most)
            except zlib.error:
                raise InvalidRequest([Problem("", "the body is not gzip, though content-encoding says so")]) from None
            size += len(made)
            if size > max_bytes:
                raise too_large(max_bytes)
            left = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            rest = rest[len(given) - len(left) :]
            yield made
        if not rest:
            return
    raise InvalidRequest([Problem("", f"the gzip body has more than {MAX_GZIP_MEMBERS} members")])


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a body past its limit."""
    return TooLarge(f"a body may have {max_bytes} bytes, after inflating too")
