"""A request's body: read within its limit, inflated within the same limit."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable
from typing import Final

from starlette.types import Receive

from service.errors import InvalidRequest, Problem, TooLarge, UnsupportedMedia

MAX_GZIP_MEMBERS: Final = 1024
"""Each member costs a fresh inflater, so a body of a million empty ones would hold a core for minutes."""
_SLICE_BYTES: Final = 65_536


class ClientLeft(Exception):
    """The client closed the connection before its answer was there."""


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """ASGI's header pairs by name; of a header given twice, the last."""
    return dict(raw)


async def read_body(receive: Receive, headers: dict[bytes, bytes], max_bytes: int) -> bytes:
    """Reads and inflates a body.

    Args:
        receive: ASGI's.
        headers: By lower-case name.
        max_bytes: Largest body; the inflated size counts.

    Raises:
        TooLarge: It is larger, or says so.
        UnsupportedMedia: A content encoding other than gzip.
        InvalidRequest: It is no gzip, or ends early.
        ClientLeft: The client closed the connection.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b"gzip", b""):
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
        if not message.get("more_body", False):
            break
        gathered += part
    body = bytes(gathered + part) if gathered else part
    if encoding == b"gzip":  # a thousand bytes may inflate to a million, which is too long for the event loop
        return await asyncio.to_thread(inflate, body, max_bytes)
    return body


def inflate(body: bytes, max_bytes: int) -> bytes:
    """The inflated body, of one gzip member or several.

    Raises:
        TooLarge: It inflates to more than `max_bytes`; no more than that is ever held.
        InvalidRequest: It is no gzip, ends early, or has more members than anybody needs.
    """
    inflated = bytearray()
    rest = memoryview(body)
    for _ in range(MAX_GZIP_MEMBERS):
        inflater = zlib.decompressobj(wbits=31)
        while not inflater.eof:
            if not rest:
                raise InvalidRequest([Problem("", "the gzip body ends before its end")])
            # By slices, because what follows a member is copied at its end.
            piece = rest[:_SLICE_BYTES]
            try:
                inflated += inflater.decompress(piece, max_bytes - len(inflated) + 1)
            except zlib.error:
                raise InvalidRequest([Problem("", "the body is not gzip, though content-encoding says so")]) from None
            if len(inflated) > max_bytes:
                raise too_large(max_bytes)
            rest = rest[len(piece) - len(inflater.unused_data) :]
        if not rest:
            return bytes(inflated)
    raise InvalidRequest([Problem("", f"the gzip body has more than {MAX_GZIP_MEMBERS} members")])


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a body past its limit."""
    return TooLarge(f"a body may have {max_bytes} bytes, after inflating too")
