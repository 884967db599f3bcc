"""A request's body: read within its limit, inflated within the same limit."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from starlette.types import Receive

from service.errors import InvalidRequest, Problem, TooLarge, UnsupportedMedia


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
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
        if not message.get("more_body", False):
            break
        parts.append(part)
    body = b"".join((*parts, part)) if parts else part
    return inflate(body, max_bytes) if encoding == b"gzip" else body


def inflate(body: bytes, max_bytes: int) -> bytes:
    """The inflated body, of one gzip member or several.

    Raises:
        TooLarge: It inflates to more than `max_bytes`; no more than that is ever held.
        InvalidRequest: It is no gzip, or ends early.
    """
    parts: list[bytes] = []
    size = 0
    while body or not parts:
        inflater = zlib.decompressobj(wbits=31)
        try:
            part = inflater.decompress(body, max_bytes - size + 1)
        except zlib.error:
            raise InvalidRequest([Problem("", "the body is not gzip, though content-encoding says so")]) from None
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
        if not inflater.eof:
            raise InvalidRequest([Problem("", "the gzip body ends before its end")])
        parts.append(part)
        body = inflater.unused_data
    return b"".join(parts)


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a body past its limit."""
    return TooLarge(f"a body may have {max_bytes} bytes, after inflating too")
