"""A request's body: read up to its limit, inflated up to the same limit, and counted while it is in memory.

The bytes of a body are counted as they arrive (`inflight`). The inflated size of a compressed body is not known before,
so it is inflated by pieces, and the memory of a piece is counted before the piece is inflated.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from starlette.types import Receive, Scope

from lengthwise.connections.inflight import Hold
from lengthwise.errors import DeadlineExceeded, InvalidRequest, Problem, TooLarge, UnsupportedMedia

# A gzip body may have several members, each with an inflater of its own: a million empty ones would take minutes.
MAX_GZIP_MEMBERS: Final = 1024
TOO_MANY_BYTES: Final = "a body may have {} bytes, after inflating too"
PIECE_BYTES: Final = 65_536  # the largest piece of a body, before and after inflating
_PIECES_AT_ONCE: Final = 32  # that a thread inflates before the event loop reserves memory for the next ones
CLIENT_LEFT: Final = 499  # the status of a call whose client left before anything of the answer was sent
DELIVERY: Final = "lengthwise.delivery"  # ASGI extension: the request's `Delivery`


class ClientLeft(Exception):
    """The client closed the connection before it was answered."""


@dataclass(slots=True)
class Delivery:
    """Whether the answer to a request through ASGI was sent; the connection sets it."""

    answered: bool = False  # whether the connection accepted the whole answer
    refused: int | None = None  # the status that the connection sent instead of the answer, if it did


def status_sent(scope: Scope, status: int) -> int:
    """The status that the client of a request has got, after an answer with `status` was passed to the connection.

    - `status`, if the connection has sent that answer.
    - The status of another refusal, if the connection has sent that instead.
    - `CLIENT_LEFT`, if nothing was sent.
    """
    delivery: Delivery | None = scope.get("extensions", {}).get(DELIVERY)
    if delivery is None or delivery.answered:
        return status
    return delivery.refused or CLIENT_LEFT


async def read_body(
    receive: Receive, headers: dict[bytes, bytes], max_bytes: int, hold: Hold, *, late_at: float = float("inf")
) -> bytes:
    """Reads a body as it was sent (compressed or not) through ASGI; its bytes are counted in `hold` as they arrive.

    `late_at` is the call's deadline on the clock of `time.monotonic`, in seconds. `hold` raises `InflightFull` for
    bytes for which there is no memory.

    Raises:
        TooLarge: The body, or its content length, has more than `max_bytes` bytes.
        DeadlineExceeded: The deadline passed before the body was complete, and other calls need the memory.
        UnsupportedMedia: The content encoding is not gzip.
        ClientLeft: The client closed the connection.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b"gzip", b""):
        raise UnsupportedMedia("content-encoding must be gzip, or none")
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > max_bytes:
        raise TooLarge(TOO_MANY_BYTES.format(max_bytes))
    received = bytearray()  # not a list of parts: with parts of one byte it would take fifty times their size
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
    """Whether the headers say that the body is compressed with gzip."""
    return headers.get(b"content-encoding", b"").strip().lower() == b"gzip"


def trailer_bytes(body: bytes) -> int:
    """The size that the last four bytes of a gzip body state (RFC 1952): that of its last member, or a lie."""
    return int.from_bytes(body[-4:], "little")


class Inflating:
    """A gzip body that is inflated piece by piece, to at most `max_bytes` bytes.

    The memory of each piece is counted in `hold` before the piece is inflated. If `at_once` returns None, the body is
    large, and `fits` goes on in a thread.
    """

    def __init__(self, body: bytes, max_bytes: int, hold: Hold) -> None:
        self._hold = hold
        self._packed_bytes = len(body)
        self._next_pieces = _inflated(body, max_bytes)
        self._pieces: list[bytes] = []
        self.size = 0  # bytes inflated so far

    def at_once(self) -> bytes | None:
        """Inflates a small body on the event loop, and returns it; None if it has more than one piece.

        Raises the same errors as `fits`: `TooLarge`, `InflightFull` or `InvalidRequest`.
        """
        self._hold.grow(2 * PIECE_BYTES)
        return None if self._inflate(2) == 2 else self.content()

    async def fits(self, size: int) -> bool:
        """Inflates the rest of the body in a thread, and returns whether it has at most `size` bytes.

        If it has more, only some more are inflated. Raises `TooLarge` as soon as more than `max_bytes` bytes are
        inflated, `InflightFull` if there is no memory for the next pieces now, and `InvalidRequest` if the body is not
        gzip, ends early, or has too many members.
        """
        while self.size <= size:
            count = min(_PIECES_AT_ONCE, (size - self.size) // PIECE_BYTES + 1)
            self._hold.set(self._packed_bytes + self.size + count * PIECE_BYTES)
            if await asyncio.to_thread(self._inflate, count) < count:
                break
        return self.size <= size

    def _inflate(self, count: int) -> int:
        """Inflates up to `count` more pieces; returns how many there were, fewer only at the end of the body."""
        before = len(self._pieces)
        for piece in islice(self._next_pieces, count):  # one by one, so that they count if the next one fails
            self._pieces.append(piece)
            self.size += len(piece)
        return len(self._pieces) - before

    def content(self) -> bytes:
        """The bytes that are inflated so far: all of them, once the body fits."""
        return b"".join(self._pieces)


def _inflated(body: bytes, max_bytes: int) -> Iterator[bytes]:
    """Yields the pieces of the inflated body, of at most `PIECE_BYTES`; each is inflated only when it is asked for.

    Raises:
        InvalidRequest: The body is not gzip, is cut off, or has too many members.
        TooLarge: It has more than `max_bytes` bytes when it is inflated.
    """
    size = 0
    rest = memoryview(body)
    for _ in range(MAX_GZIP_MEMBERS):  # each member has an inflater of its own
        inflater = zlib.decompressobj(wbits=31)
        piece, piece_limit = b"", 1  # no piece so far: the first one needs input
        while not inflater.eof:
            # Without further input, the inflater has more only if the last piece was as long as its limit.
            if not rest and len(piece) < piece_limit:
                raise InvalidRequest([Problem("", "the gzip body ends before its end")])
            # Slices of the body, because the inflater copies everything after the end of a member.
            chunk = rest[:PIECE_BYTES]
            piece_limit = min(PIECE_BYTES, max_bytes - size + 1)
            try:
                piece = inflater.decompress(chunk, piece_limit)
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
