"""Which requests are answered without ASGI, and without the parser if their header block is known.

A program sends one request after another, on one connection or several. Their header blocks are the same bytes, but for
the digits of `content-length`, so the result of parsing the first one is right for the others. Every other header block
goes through the parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lengthwise.errors import Unauthorized
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.request_reader import Head
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, LONGEST_KEY_BYTES, Endpoint, KnownRequests

if TYPE_CHECKING:
    from lengthwise.http.connection import Connection

MAX_DIGITS: Final = 7  # of a content length; a request with more goes through ASGI
MAX_KNOWN_FIELDS: Final = 32  # of a header block that is remembered; it has `LONGEST_KEY_BYTES` at most
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})(?=\r\n)" % MAX_DIGITS, re.IGNORECASE)
_END: Final = b"\r\n\r\n"
_PLAIN_QUERY: Final = re.compile(rb"[\w.,:=&%+/-]*")  # one that ends where the URL ends
_NEED_ASGI: Final = (
    b"content-encoding",
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"origin",  # a browser's: the application adds the headers that let its page read the answer
)


class FastPath:
    """Chooses the requests that need no ASGI, of those that the endpoints answer; their bodies have `max_bytes`."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        serving = endpoints[0].serving
        self.inflight = serving.inflight
        self.max_bytes = min(LARGE_BODY_BYTES, serving.settings.max_body_bytes)
        self._endpoints = endpoints
        self._serving = serving
        self._known = KnownRequests()

    def known(self, data: bytes) -> tuple[Endpoint, dict[bytes, bytes], dict[str, Any], bytes] | None:
        """The endpoint, headers, scope and body of a whole request with a remembered header block; else None."""
        parts = RequestParts.of(data)
        parsed = None if parts is None or len(parts.body) > self.max_bytes else self._known.get(parts.block)
        return None if parts is None or parsed is None else (*parsed, parts.body)

    def remember(self, data: bytes, request: FastRequest) -> None:
        """Remembers the header block of a whole request that was parsed, unless it is large or unusual."""
        parts, headers = RequestParts.of(data), dict(request.headers)
        # The only plain content length is the one that the parser read: no other one hides in the block.
        is_plain = parts is not None and headers.pop(b"content-length", None) == parts.digits
        if parts is not None and is_plain and not _CONTENT_LENGTH.search(parts.block[1]):
            parsed = (request.endpoint, headers, request.scope) if len(headers) < MAX_KNOWN_FIELDS else None
            self._known.add(parts.block, sum(map(len, parts.block)), parsed)

    def begin(self, connection: Connection, head: Head) -> FastRequest | None:
        """Begins a request, by its head; None where it goes through ASGI."""
        path, _, query = head.url.partition(b"?")
        target = next(((one, match) for one in self._endpoints if (match := one.path.fullmatch(path))), None)
        if target is None or head.method != b"POST" or head.version != "1.1" or not head.keep_alive:
            return None
        headers = dict(head.headers)
        if not _PLAIN_QUERY.fullmatch(query) or not self._is_ordinary(headers):
            return None
        endpoint, match = target
        scope: dict[str, Any] = {"query_string": query} if query else {}
        named = {name: value.decode() for name, value in match.groupdict().items() if value is not None}
        return FastRequest(connection, endpoint, headers, scope | {"path_params": named})

    def _is_ordinary(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request needs no ASGI, which refuses one without a key or memory before its body is read."""
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or len(length) > MAX_DIGITS or any(name in headers for name in _NEED_ASGI):
            return False
        try:
            self._serving.check_key(headers)
        except Unauthorized:
            return False
        return int(length) <= min(self.max_bytes, self.inflight.free)


class RequestParts(NamedTuple):
    """A whole request, as bytes."""

    block: tuple[bytes, bytes]  # its header block before and after the digits of the content length
    digits: bytes
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> RequestParts | None:
        """Splits a request; None where it is not whole, or its header block is large or without a plain length."""
        end = data.find(_END, 0, LONGEST_KEY_BYTES) + len(_END)
        length = _CONTENT_LENGTH.search(data, 0, end)
        if length is None or int(length[1]) != len(data) - end:
            return None
        start, stop = length.span(1)
        return cls((data[:start], data[stop:end]), length[1], data[end:])
