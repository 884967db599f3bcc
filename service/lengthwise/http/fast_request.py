"""An inference call without ASGI: the ordinary request, from the parser's callbacks to one write.

A small JSON request on a connection that stays open does not need ASGI. A `FastRequest` gets its bytes from the
connection, drives the same `InferenceCall` as every other request, and writes the answer, which
the runner thread has encoded as a whole, header block included, without a task or a future. Every other request (a
large or chunked body, a content encoding, HTTP/1.0, a path that is no inference call's) goes through ASGI.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from lengthwise.batching.queues import Timing
from lengthwise.errors import Unauthorized
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft, headers_of
from lengthwise.protocols.call import DirectCall, InferenceCall, server_timing
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Endpoint, Headers, Received
from lengthwise.protocols.problems import CLOSE

if TYPE_CHECKING:
    from lengthwise.http.fast_path import FastConnection
    from lengthwise.http.request_reader import Head

MAX_DIGITS: Final = 7
"""Most digits of a content length; a request with more goes through ASGI."""
STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_PLAIN_QUERY: Final = re.compile(rb"[\w.,:=&%+/-]*")
"""A query that ends where the URL ends."""
_NEED_ASGI: Final = (
    b"content-encoding",
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"origin",  # a browser's: the application adds the headers that let its page read the answer
)


class FastRequest(DirectCall):
    """One request and its answer.

    Args:
        connection: The connection that the request came from.
        endpoint: Answers it.
        headers: The headers, by lower-case name.
        scope: What the endpoint reads of ASGI's scope: the query, and what the path names.

    Attributes:
        admitted: Whether its headers were found right.
        endpoint: As given.
        headers: As given.
        scope: As given.
        keep_alive: Whether the connection stays open after the answer.
    """

    __slots__ = ("_connection", "admitted", "endpoint", "headers", "keep_alive", "scope")

    def __init__(
        self, connection: FastConnection, endpoint: Endpoint, headers: dict[bytes, bytes], scope: dict[str, Any]
    ) -> None:
        super().__init__(InferenceCall(endpoint, headers, connection.client))
        self._connection = connection
        self.admitted = False
        self.endpoint = endpoint
        self.headers = headers
        self.scope = scope
        self.keep_alive = True

    @property
    def response_started(self) -> bool:
        """The same as `response_complete`, because the answer is written at once."""
        return self.response_complete

    # What the connection reports.

    def body_part(self, size: int) -> None:
        """A part of the body is here; the call is refused where there is no memory for it."""
        if self.response_complete:
            return
        try:
            self.call.hold.grow(size)
        except Exception as error:
            self.set_exception(error)

    def body_complete(self, body: bytes, *, known: bool = False) -> None:
        """Decodes the complete body and submits its sequences; of a known header block only the key is checked."""
        if self.response_complete:
            return
        try:
            self.call.admit(known=known)
        except Exception as error:
            self.set_exception(error)
            return
        self.admitted = True
        self.decode(Received(self.scope, self.headers, body))

    def client_left(self) -> None:
        """Called when the connection is lost."""
        self.set_exception(ClientLeft())

    def refused(self, status: int) -> None:
        """Called when the connection ends after writing this status in the place of the answer."""
        self._end(status, None)

    def set_result(self, answer: bytes) -> None:
        """Writes the answer: a whole response."""
        self._end(200, answer)

    def write(self, encoded: tuple[bytes, Headers], timing: Timing) -> bytes:
        """Builds the whole response from an answer, in a runner thread."""
        body, headers = encoded
        return self._response(200, body, [*headers, server_timing(self.call.decode_seconds, timing)])

    def set_exception(self, error: BaseException) -> None:
        """Ends the request with a refusal; writes nothing if the client has left."""
        refusal = self.call.fail(error)
        if refusal is None:
            self._end(CLIENT_LEFT, None)
        else:
            status, body, headers = self.endpoint.refuse(refusal)
            self._end(status, self._response(status, body, headers))

    def _response(self, status: int, body: bytes, headers: Headers) -> bytes:
        if CLOSE in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append(CLOSE)
        headers.append((b"x-request-id", self.call.request_id))
        default_lines = DEFAULT_LINES.of(self._connection.server_state.default_headers)
        return response(status, default_lines, headers, body)

    def _end(self, status: int, written: bytes | None) -> None:
        """Writes the response, closes the call, and lets the connection go on; does nothing the second time.

        Args:
            status: The status that the client gets.
            written: The response; None where the connection wrote one, or the client has left.
        """
        if self.response_complete:
            return
        self.response_complete = True
        call = self.call
        call.hold.close()
        if written is not None and self.keep_alive and self.endpoint.serving.batcher.draining:
            self.keep_alive = False  # only now: it may have been written before the drain began
            written = ending(written)
        ended, left = time.monotonic(), False
        try:
            left = written is not None and self._connection.answered(written, keep_alive=self.keep_alive)
        finally:  # the client does not wait for the record
            call.close(status if left or written is None else CLIENT_LEFT, delivered=left, ended=ended)


class FastPath:
    """Chooses the requests that need no ASGI.

    Args:
        endpoints: Answer requests for their paths; at least one.

    Attributes:
        inflight: Counts the bytes of bodies and answers.
        max_bytes: The largest body of a fast request.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        serving = endpoints[0].serving
        self.inflight = serving.inflight
        self.max_bytes = min(LARGE_BODY_BYTES, serving.settings.max_body_bytes)
        self._endpoints = endpoints
        self._serving = serving

    def begin(self, connection: FastConnection, head: Head) -> FastRequest | None:
        """Begins a request, by its head; None where it goes through ASGI."""
        path, _, query = head.url.partition(b"?")
        if head.method != b"POST" or not _PLAIN_QUERY.fullmatch(query):
            return None
        found = next(((one, match) for one in self._endpoints if (match := one.path.fullmatch(path))), None)
        if found is None:
            return None
        headers = headers_of(head.headers)
        # One without a key, or without memory for its body, is refused before its body is read, which ASGI does.
        if not ordinary(headers, min(self.max_bytes, self.inflight.free)) or not self._has_key(headers):
            return None
        endpoint, match = found
        scope: dict[str, Any] = {"query_string": query} if query else {}
        named = {name: value.decode() for name, value in match.groupdict().items() if value is not None}
        return FastRequest(connection, endpoint, headers, scope | {"path_params": named})

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the headers have a key, where keys are set."""
        keys = self._serving.keys
        if keys is not None:
            try:
                keys.check(headers.get(b"authorization"))
            except Unauthorized:
                return False
        return True


def ordinary(headers: dict[bytes, bytes], max_bytes: int = LARGE_BODY_BYTES) -> bool:
    """Whether a request needs no ASGI, by its headers.

    Args:
        headers: The headers, by lower-case name.
        max_bytes: The largest body that there is memory for.
    """
    length = headers.get(b"content-length", b"")
    return (
        length.isdigit()
        and len(length) <= MAX_DIGITS
        and int(length) <= max_bytes
        and not any(name in headers for name in _NEED_ASGI)
    )


def header_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Headers as they are written, each on a line."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def response(status: int, default_lines: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole response.

    Args:
        status: Its status.
        default_lines: The header lines that every response has, such as the date.
        headers: Its other headers, but for `content-length`.
        body: Its body.
    """
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (
        STATUS_LINES[status],
        default_lines,
        header_lines(headers),
        len(body),
        body,
    )


def ending(written: bytes) -> bytes:
    """A whole response without `connection`, as one that ends its connection."""
    return written.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


class DefaultHeaderLines:
    """The headers of every response as they are written. uvicorn makes a new list of them every second."""

    def __init__(self) -> None:
        self._last: tuple[object, bytes] = (None, b"")

    def of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The lines of a list, which is not changed afterwards; those of the last list are kept."""
        last, lines = self._last
        if last is not headers:
            lines = header_lines(headers)
            self._last = headers, lines  # one assignment, because runner threads read it too
        return lines


DEFAULT_LINES: Final = DefaultHeaderLines()
