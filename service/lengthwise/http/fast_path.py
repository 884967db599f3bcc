"""Which requests are answered without ASGI, and without the parser if their header block is known.

A program sends one request after another, on one connection or several. Their header blocks are the same bytes, but for
the digits of `content-length`, so the result of parsing the first one is right for the others. `KnownRequests`
remembers it by the bytes before and after these digits (`RequestParts.block`). Every other header block goes through
the parser.
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
MAX_KNOWN_FIELDS: Final = 32  # headers of a block that is remembered; its bytes are at most `LONGEST_KEY_BYTES`
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})(?=\r\n)" % MAX_DIGITS, re.IGNORECASE)
_END: Final = b"\r\n\r\n"
_PLAIN_QUERY: Final = re.compile(rb"[\w.,:=&%+/-]*")  # has no `#`, so the query ends where the URL ends
_NEED_ASGI: Final = (  # headers of requests that go through ASGI
    b"content-encoding",
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"origin",  # a browser's: the application adds the headers that let its page read the answer
)


class FastPath:
    """Chooses the requests to the endpoints that need no ASGI; their bodies have `max_bytes` at most."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        serving = endpoints[0].serving
        self.inflight = serving.inflight
        self.max_bytes = min(LARGE_BODY_BYTES, serving.request_limits.body_bytes)
        self._endpoints = endpoints
        self._serving = serving
        self._known = KnownRequests()

    def known(self, data: bytes) -> tuple[Endpoint, dict[bytes, bytes], dict[str, Any], bytes] | None:
        """Splits the data of a whole request whose header block is remembered; None for any other data.

        Returns its endpoint, headers, scope (query and names in the path) and body.
        """
        parts = RequestParts.of(data)
        parsed = None if parts is None or len(parts.body) > self.max_bytes else self._known.get(parts.block)
        return None if parts is None or parsed is None else (*parsed, parts.body)

    def remember(self, data: bytes, request: FastRequest) -> None:
        """Remembers the header block of a request that was parsed from `data`, for the next request with that block.

        Not if the block is large or has many headers, or if its content length is not exactly what `RequestParts` has
        found: the parser has read another one, or there is a second one.
        """
        parts, headers = RequestParts.of(data), dict(request.headers)
        is_plain = parts is not None and headers.pop(b"content-length", None) == parts.digits
        if parts is not None and is_plain and not _CONTENT_LENGTH.search(parts.block[1]):
            parsed = (request.endpoint, headers, request.scope) if len(headers) < MAX_KNOWN_FIELDS else None
            self._known.add(parts.block, sum(map(len, parts.block)), parsed)

    def begin(self, connection: Connection, head: Head) -> FastRequest | None:
        """Makes the fast request of a parsed head; its body follows. None if the request has to go through ASGI."""
        path, _, query = head.url.partition(b"?")
        if head.method != b"POST" or head.version != "1.1" or not head.keep_alive or not _PLAIN_QUERY.fullmatch(query):
            return None
        headers = dict(head.headers)
        for endpoint in self._endpoints:
            match = endpoint.path.fullmatch(path)
            if match is not None and self._is_ordinary(headers):
                scope: dict[str, Any] = {"query_string": query} if query else {}
                scope["path_params"] = {
                    name: value.decode() for name, value in match.groupdict().items() if value is not None
                }
                return FastRequest(connection, endpoint, headers, scope)
        return None

    def _is_ordinary(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the headers let a request be answered without ASGI.

        They have a plain content length, a right key, and none of `_NEED_ASGI`, and there is memory for the body. ASGI
        refuses a request without key or memory before its body is read, which a fast request could not.
        """
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or len(length) > MAX_DIGITS or any(name in headers for name in _NEED_ASGI):
            return False
        try:
            self._serving.check_key(headers)
        except Unauthorized:
            return False
        return int(length) <= min(self.max_bytes, self.inflight.free)


class RequestParts(NamedTuple):
    """A whole request, as bytes, split where its header block differs from the next request of the same program."""

    block: tuple[bytes, bytes]  # the header block before and after the digits of the content length
    digits: bytes  # the content length
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> RequestParts | None:
        """Splits the data of one whole request.

        None if they are more or less than that, or if the header block is longer than `LONGEST_KEY_BYTES` or has no
        plain content length.
        """
        # Where there is no end, this is 3, and so few bytes have no content length.
        end = data.find(_END, 0, LONGEST_KEY_BYTES) + len(_END)
        length = _CONTENT_LENGTH.search(data, 0, end)
        if length is None or int(length[1]) != len(data) - end:
            return None
        digits_start, digits_end = length.span(1)
        return cls((data[:digits_start], data[digits_end:end]), length[1], data[end:])
