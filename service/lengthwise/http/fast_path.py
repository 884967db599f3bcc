"""Which requests are answered without ASGI, and without the parser if their header block is known.

A connection that stays open carries one request after another. Their header blocks are the same bytes, but for the
digits of `content-length`, so the result of parsing the first one is right for the others, and two comparisons of bytes
recognise them. Every other header block goes through the parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lengthwise.errors import Unauthorized
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.request_reader import Head
from lengthwise.protocols.body import headers_of
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Endpoint

if TYPE_CHECKING:
    from lengthwise.http.connection import Connection

MAX_DIGITS: Final = 7  # of a content length; a request with more goes through ASGI
# Larger header blocks are parsed each time: every idle connection keeps its known one, as bytes and as objects.
MAX_KNOWN_BYTES: Final = 2048
MAX_KNOWN_FIELDS: Final = 32
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

    def begin(self, connection: Connection, head: Head) -> FastRequest | None:
        """Begins a request, by its head; None where it goes through ASGI."""
        path, _, query = head.url.partition(b"?")
        found = next(((one, match) for one in self._endpoints if (match := one.path.fullmatch(path))), None)
        if found is None or head.method != b"POST" or head.version != "1.1" or not head.keep_alive:
            return None
        headers = headers_of(head.headers)
        if not _PLAIN_QUERY.fullmatch(query) or not self._is_ordinary(headers):
            return None
        endpoint, match = found
        scope: dict[str, Any] = {"query_string": query} if query else {}
        named = {name: value.decode() for name, value in match.groupdict().items() if value is not None}
        return FastRequest(connection, endpoint, headers, scope | {"path_params": named})

    def _is_ordinary(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request needs no ASGI, which refuses one without a key or memory before its body is read."""
        length, keys = headers.get(b"content-length", b""), self._serving.keys
        if not length.isdigit() or len(length) > MAX_DIGITS or any(name in headers for name in _NEED_ASGI):
            return False
        try:
            if keys is not None:
                keys.check(headers.get(b"authorization"))
        except Unauthorized:
            return False
        return int(length) <= min(self.max_bytes, self.inflight.free)


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A header block that was parsed, and what is known by it of a request."""

    before: bytes  # the digits of the content length
    after: bytes  # them, with the empty line
    endpoint: Endpoint
    headers: dict[bytes, bytes]  # without the content length
    scope: dict[str, Any]

    @classmethod
    def of(cls, request: bytes, begun: FastRequest) -> KnownHead | None:
        """The header block of a request, which was parsed; None if it is large, or has no plain content length."""
        headers = begun.headers
        end = request.find(_END) + len(_END)
        if end > MAX_KNOWN_BYTES or len(headers) > MAX_KNOWN_FIELDS:
            return None
        lengths = list(_CONTENT_LENGTH.finditer(request, 0, end))
        if len(lengths) != 1:
            return None
        start, stop = lengths[0].span(1)
        digits = request[start:stop]
        if digits != headers.get(b"content-length") or int(digits) != len(request) - end:
            return None
        others = {name: value for name, value in headers.items() if name != b"content-length"}
        return cls(request[:start], request[stop:end], begun.endpoint, others, begun.scope)

    def body(self, request: bytes, max_bytes: int) -> bytes | None:
        """The body of a whole request with this header block; None for any other request."""
        before, after = self.before, self.after
        if not request.startswith(before):
            return None
        start = len(before)
        stop = request.find(after, start, start + MAX_DIGITS + len(after))
        digits = request[start:stop]
        if stop < 0 or not digits.isdigit():
            return None
        body = stop + len(after)
        length = len(request) - body
        return request[body:] if length == int(digits) and length <= max_bytes else None
