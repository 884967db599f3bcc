"""An inference call without ASGI: the ordinary request, from the parser's callbacks to one write.

A small JSON request on a connection that stays open does not need ASGI. A `FastRequest` gets its bytes from the
connection, drives the same `InferenceCall` as every other request, and writes the answer, which the thread of the batch
has encoded as a whole, header block included, without a task or a future. Every other request (a large or chunked body,
a content encoding, HTTP/1.0, a path of another operation) goes through ASGI.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from lengthwise.batching.queues import Timing
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft
from lengthwise.protocols.call import DirectCall, InferenceCall, server_timing
from lengthwise.protocols.endpoint import Endpoint, Headers, Received
from lengthwise.protocols.problems import CLOSE

if TYPE_CHECKING:
    from lengthwise.http.connection import Connection

STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class FastRequest(DirectCall):
    """One request that is answered without ASGI.

    `scope` has the entries of an ASGI scope that endpoints read: the query, and the names in the path.
    """

    __slots__ = ("_connection", "_parts", "admitted", "endpoint", "headers", "keep_alive", "scope")

    def __init__(
        self, connection: Connection, endpoint: Endpoint, headers: dict[bytes, bytes], scope: dict[str, Any]
    ) -> None:
        super().__init__(InferenceCall(endpoint, headers, connection.client))
        self._connection = connection
        self._parts: list[bytes] = []  # parts of the body so far
        self.admitted = False  # the headers passed every check, such as of the key
        self.endpoint = endpoint
        self.headers = headers
        self.scope = scope
        self.keep_alive = True  # the connection stays open after the answer

    @property
    def response_started(self) -> bool:
        """The same as `response_complete`, because an answer is written at once."""
        return self.response_complete

    # What the connection reports.

    def body_part(self, body: bytes) -> None:
        """Keeps a part of the body. If there is no memory for it, the call is refused and further parts are dropped."""
        if self.response_complete:
            return
        try:
            self.call.hold.grow(len(body))
        except Exception as error:
            self._parts.clear()
            self.set_exception(error)
        else:
            self._parts.append(body)

    def body_complete(self) -> None:
        """Joins the parts of the body, and answers the request."""
        parts, self._parts = self._parts, []
        self.answer(parts[0] if len(parts) == 1 else b"".join(parts))

    def answer(self, body: bytes, *, known: bool = False) -> None:
        """Decodes the body and submits its sequences.

        If the header block is `known` (remembered), only the key is checked.
        """
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
        """Ends the request without an answer, because the connection is lost."""
        self.set_exception(ClientLeft())

    def refused(self, status: int) -> None:
        """Ends the request: the connection wrote a refusal with this status instead of the answer, and ends."""
        self._end(status, None)

    def set_result(self, answer: bytes) -> None:
        """Writes the answer, which is a whole response (made by `write`)."""
        self._end(200, answer)

    def write(self, encoded: tuple[bytes, Headers], timing: Timing) -> bytes:
        """Builds the whole response of status 200, in the thread that ran the last batch of the request."""
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
        """A whole response, whose headers say whether the connection stays open; adds to `headers`."""
        if CLOSE in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append(CLOSE)
        headers.append((b"x-request-id", self.call.request_id))
        return response(status, common_lines(tuple(self._connection.server_state.default_headers)), headers, body)

    def _end(self, status: int, full_response: bytes | None) -> None:
        """Ends the request: writes its response, and closes its call with `status`. Only the first call has an effect.

        `full_response` is None if the connection wrote a refusal instead, or the client has left: then `status` says
        that, and nothing is written. If the client is gone when the response is written, the call is closed with
        `CLIENT_LEFT`.
        """
        if self.response_complete:
            return
        self.response_complete = True
        call = self.call
        call.hold.close()
        if full_response is not None and self.keep_alive and self.endpoint.serving.batcher.draining:
            self.keep_alive = False  # the response was encoded before the drain began, so the header is added here
            full_response = full_response.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        end_time, is_sent = time.monotonic(), False
        try:
            is_sent = full_response is not None and self._connection.answered(full_response, keep_alive=self.keep_alive)
        finally:  # after the answer, so that the client does not wait while the call is recorded
            call.close(status if is_sent or full_response is None else CLIENT_LEFT, delivered=is_sent, ended=end_time)


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as bytes, each on a line of its own."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def response(status: int, common: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole response; `common` are the header lines that all responses have, such as the date."""
    return b"%s%s%scontent-length: %d\r\n\r\n%s" % (
        STATUS_LINES[status],
        common,
        header_lines(headers),
        len(body),
        body,
    )


common_lines: Final = lru_cache(maxsize=4)(header_lines)
"""The lines of the headers that every response has, as a tuple: uvicorn changes their date every second."""
