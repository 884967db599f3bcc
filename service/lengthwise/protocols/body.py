"""A request's body: read up to its limit, inflated up to the same limit, and counted while it is in memory.

The bytes of a body are counted as they arrive (`inflight`). Inflated bytes are counted before they are inflated, a
piece at a time, because the inflated size of a compressed body is not known before.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Final

from starlette.types import Receive, Scope

from lengthwise.connections.inflight import Hold
from lengthwise.errors import DeadlineExceeded, InvalidRequest, Problem, TooLarge, UnsupportedMedia

# Each member costs a fresh inflater, so a body of a million empty ones would hold a core for minutes.
MAX_GZIP_MEMBERS: Final = 1024
TOO_MANY_BYTES: Final = "a body may have {} bytes, after inflating too"
PIECE_BYTES: Final = 65_536  # the largest piece of a body, before and after inflating
_PIECES_AT_ONCE: Final = 32  # that a thread inflates before the event loop reserves memory for the next ones
CLIENT_LEFT: Final = 499  # the status of a call of whose answer nothing was sent
DELIVERY: Final = "lengthwise.delivery"  # ASGI extension: the request's `Delivery`


class ClientLeft(Exception):
    """The client closed the connection before its answer was there."""


class Delivery:
    """Whether the answer to a request through ASGI was sent."""

    __slots__ = ("answered", "refused")

    def __init__(self) -> None:
        self.answered = False  # whether the connection accepted the whole answer
        self.refused: int | None = None  # the status that the connection sent instead of the answer, if it did


def status_sent(scope: Scope, status: int) -> int:
    """The status that a client got: of the answer or of the connection's refusal; `CLIENT_LEFT` if none was sent."""
    delivery: Delivery | None = scope.get("extensions", {}).get(DELIVERY)
    if delivery is None or delivery.answered:
        return status
    return delivery.refused or CLIENT_LEFT


async def read_body(
    receive: Receive, headers: dict[bytes, bytes], max_bytes: int, hold: Hold, *, late_at: float = float("inf")
) -> bytes:
    """Reads a body as it was sent, through ASGI; its bytes are counted in `hold` as they arrive.

    `late_at` is a time of `time.monotonic`, in seconds. `hold` refuses bytes for which there is no memory
    (InflightFull).

    Raises:
        TooLarge: It, or its content length, has more than `max_bytes` bytes.
        DeadlineExceeded: It is later than `late_at`, and others need the memory.
        UnsupportedMedia: It has another content encoding than gzip.
        ClientLeft: The client closed the connection.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b"gzip", b""):
        raise UnsupportedMedia("content-encoding must be gzip, or none")
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > max_bytes:
        raise TooLarge(TOO_MANY_BYTES.format(max_bytes))
    received = bytearray()  # not a list: that of a body in pieces of one byte would take fifty times its size
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        if len(received) + len(part) > max_bytes:
            raise TooLarge(TOO_MANY_BYTES.format(max_bytes))
        hold.grow(len(part))
        if not message.get("more_body", False):
            break
        received += part
        if hold.crowded and time.monotonic() > late_at:
            raise DeadlineExceeded("the deadline passed before the whole body was there")
    return bytes(received + part) if received else part


def is_packed(headers: dict[bytes, bytes]) -> bool:
    """Whether a body is to be inflated."""
    return headers.get(b"content-encoding", b"").strip().lower() == b"gzip"


def inflated_bytes(body: bytes, max_bytes: int) -> int:
    """How large a gzip body is when it is inflated, by its last four bytes (RFC 1952), and at most `max_bytes`."""
    return min(max(len(body), int.from_bytes(body[-4:], "little")), max_bytes)


class Inflating:
    """A gzip body that is being inflated to `max_bytes` at most, which are counted in `hold` before."""

    def __init__(self, body: bytes, max_bytes: int, hold: Hold) -> None:
        self._hold = hold
        self._sent = len(body)
        self._steps = _inflated(body, max_bytes)
        self._pieces: list[bytes] = []
        self.size = 0

    def at_once(self) -> bytes | None:
        """The inflated body where that is one piece, inflated on the event loop; None where it is more.

        Raises as `inflated` does.
        """
        self._hold.grow(2 * PIECE_BYTES)
        return self.content() if self._inflate(2) < 2 else None  # one piece, and nothing behind it

    async def inflated(self) -> bytes:
        """The inflated body, inflated in a thread.

        Raises `TooLarge` if it is larger than `max_bytes`, of which no more is ever in memory, `InflightFull` if there
        is no memory for it now, `InvalidRequest` if it is no gzip, ends early, or has too many members.
        """
        while True:
            self._hold.set(self._sent + self.size + _PIECES_AT_ONCE * PIECE_BYTES)
            if await asyncio.to_thread(self._inflate, _PIECES_AT_ONCE) < _PIECES_AT_ONCE:
                return await asyncio.to_thread(self.content)

    def _inflate(self, count: int) -> int:
        """Inflates up to `count` more pieces; returns how many there were."""
        pieces = list(islice(self._steps, count))
        self._pieces += pieces
        self.size += sum(map(len, pieces))
        return len(pieces)

    def content(self) -> bytes:
        """What is inflated so far."""
        return b"".join(self._pieces)


def _inflated(body: bytes, max_bytes: int) -> Iterator[bytes]:
    """The inflated body by pieces; see `Inflating`.

    Raises:
        InvalidRequest: The body is not gzip, is cut off, or has too many members.
        TooLarge: It has more than `max_bytes` bytes when it is inflated.
    """
    size = 0
    rest = memoryview(body)
    for _ in range(MAX_GZIP_MEMBERS):
        inflater = zlib.decompressobj(wbits=31)
        piece, most = b"", 1
        while not inflater.eof:
            if not rest and len(piece) < most:  # else the inflater may have more
                raise InvalidRequest([Problem("", "the gzip body ends before its end")])
            # By slices, because the inflater copies what follows a member.
            chunk = rest[:PIECE_BYTES]
            most = min(PIECE_BYTES, max_bytes - size + 1)
            try:
                piece = inflater.decompress(chunk, most)
            except zlib.error:
                raise InvalidRequest([Problem("", "the body is not gzip, though content-encoding says so")]) from None
            size += len(piece)
            if size > max_bytes:
                raise TooLarge(TOO_MANY_BYTES.format(max_bytes))
            unread = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            rest = rest[len(chunk) - len(unread) :]
            yield piece
        if not rest:
            return
    raise InvalidRequest([Problem("", f"the gzip body has more than {MAX_GZIP_MEMBERS} members")])
