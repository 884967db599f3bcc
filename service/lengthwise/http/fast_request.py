"""`POST /predict` without ASGI: the ordinary request, from the parser's callbacks to one write.

A request that is small, plain JSON over a connection that stays open needs none of what ASGI is for. `Direct` takes it
from the HTTP parser, asks the batcher, and writes the answer, which the runner thread has made whole, head and all; no
task and no future stands between. It is the same endpoint: the same check, decoding, refusals and counts. Whatever is
not ordinary (a large or chunked body, an encoding, an old protocol, another path) goes the way of every other request.

A `Direct` stands where uvicorn's protocol keeps its own cycle of request and response, so that pipelining, keep-alive
and shutdown go on as they are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from http import HTTPStatus
from typing import Final

from lengthwise.batching.queues import PendingRequest, Timing
from lengthwise.decoding.calls import Call
from lengthwise.errors import InferenceFailed, RequestError
from lengthwise.http.fast_path import ShortcutProtocol
from lengthwise.inflight import Hold
from lengthwise.protocols import endpoint as endpoints
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft, headers_of
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES, Encode, Endpoint, Received
from lengthwise.protocols.problems import CLOSE
from lengthwise.runtime.answers import Answer

log = logging.getLogger("lengthwise.direct")

_LINES: Final = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def ordinary(headers: dict[bytes, bytes], max_bytes: int = LARGE_BODY_BYTES) -> bool:
    """Whether a request with these headers, by lower-case name, and a body of so many bytes at most, is one to take."""
    length = headers.get(b"content-length", b"")
    return (
        length.isdigit()
        and len(length) < 8
        and int(length) <= max_bytes
        and b"content-encoding" not in headers
        and b"transfer-encoding" not in headers
        and b"expect" not in headers
        and b"upgrade" not in headers
        and b"origin" not in headers  # a browser's: what it may read of the answer is said elsewhere
    )


class Direct:
    """One request and its answer.

    Args:
        protocol: Whose connection it is.
        endpoint: What it is for.
        headers: By lower-case name.

    Attributes:
        response_complete: For uvicorn: whether the next request may begin.
        keep_alive: For uvicorn: cleared at shutdown, so that the connection ends with the answer.
        disconnected: For uvicorn: set when the connection is lost.
    """

    __slots__ = (
        "_account",
        "_decoding",
        "_endpoint",
        "_hold",
        "_protocol",
        "_ticket",
        "disconnected",
        "headers",
        "keep_alive",
        "response_complete",
        "response_started",
    )

    def __init__(self, protocol: ShortcutProtocol, endpoint: Endpoint, headers: dict[bytes, bytes]) -> None:
        self._protocol = protocol
        self._endpoint = endpoint
        self.headers = headers
        self._account = endpoint.account(headers)
        self._hold = Hold(endpoint.serving.inflight)
        self._ticket: PendingRequest | None = None
        self._decoding: asyncio.Task[None] | None = None
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False
        self.response_started = False

    @property
    def message_event(self) -> Direct:
        """For uvicorn, which sets its cycle's event when the connection is lost."""
        return self

    def set(self) -> None:
        """The connection is lost: what has not begun is not run."""
        if self.disconnected and not self.response_complete:
            if self._ticket is not None:
                self._endpoint.serving.batcher.withdraw(self._ticket, ClientLeft())
            else:
                self.set_exception(ClientLeft())

    def came(self, size: int) -> None:
        """A part of the body is here: it is counted, or refused where there is no room for it."""
        if self.response_complete:
            return
        try:
            self._hold.grow(size)
        except RequestError as error:
            self.set_exception(error)

    def run(self, body: bytes) -> None:
        """The body is here: decodes it, and asks."""
        if self.response_complete:
            return
        endpoint, headers = self._endpoint, self.headers
        try:
            endpoint.admit(headers)
            self._hold.set(len(body))
            started = time.monotonic()
            request = Received({}, headers, body)
            found = endpoint.decode_quickly(request)
            if found is None:
                self._decoding = asyncio.ensure_future(self._decode_in_thread(request, started))
            else:
                self._ask(*found, started)
        except Exception as error:  # a refusal is told; of anything else nothing may reach the client
            self.set_exception(error)

    def _ask(self, call: Call, encode: Encode, started: float) -> None:
        """Queues what was decoded."""
        finish = partial(self._finish, encode, self._account.decoded(call, started))
        self._ticket = self._endpoint.ask(call, finish, self._account, self._hold, self)

    async def _decode_in_thread(self, request: Received, started: float) -> None:
        """Decodes a body that would hold the event loop for too long; a client that leaves meanwhile asks nothing."""
        endpoint = self._endpoint
        deadline = self._account.arrived + endpoint.serving.settings.default_timeout_ms / 1000
        try:
            found = await endpoint.decode_in_thread(request, deadline)
            if not self.response_complete:
                self._ask(*found, started)
        except Exception as error:  # as above
            self.set_exception(error)
        finally:
            self._decoding = None

    def refused(self, status: int) -> None:
        """The connection ends with that status, which the protocol has written itself."""
        self._end(status, None)

    def _finish(self, encode: Encode, decoded: float, answers: list[Answer], timing: Timing) -> tuple[bytes, Timing]:
        """Makes the whole answer, in a runner thread."""
        payload, headers = encode(answers)
        return self._written(200, payload, [*headers, endpoints.server_timing(decoded, timing)]), timing

    # What a ticket asks of its future.

    def done(self) -> bool:
        """Whether the answer, or a refusal, was written."""
        return self.response_complete

    def set_result(self, answer: tuple[bytes, Timing]) -> None:
        """Writes the answer."""
        response, timing = answer
        self._end(200, response, timing=timing)

    def set_exception(self, error: BaseException) -> None:
        """Writes why there is no answer."""
        if isinstance(error, ClientLeft):
            self._end(CLIENT_LEFT, None)
            return
        if not isinstance(error, RequestError):
            log.error("request %s failed", self._account.request_id.decode(), exc_info=error)
            error = InferenceFailed("the request could not be answered")
        status, payload, headers = self._endpoint.refuse(error)
        self._end(status, self._written(status, payload, headers), error)

    def _written(self, status: int, payload: bytes, headers: endpoints.Headers) -> bytes:
        """A whole response."""
        lines = b"".join([b"%s: %s\r\n" % header for header in headers])
        if CLOSE in headers:
            self.keep_alive = False
        elif not self.keep_alive or self._endpoint.serving.batcher.draining:
            self.keep_alive = False
            lines += b"connection: close\r\n"
        return b"%s%s%scontent-length: %d\r\nx-request-id: %s\r\n\r\n%s" % (
            _LINES[status],
            self._protocol.default_headers,
            lines,
            len(payload),
            self._account.request_id,
            payload,
        )

    def _end(
        self, status: int, response: bytes | None, error: RequestError | None = None, timing: Timing | None = None
    ) -> None:
        """Closes the request's account, once, and gives the connection back."""
        if self.response_complete:
            return
        self.response_complete = self.response_started = True
        self._ticket = None
        self._hold.close()
        ended = time.monotonic()
        left = response is None  # the protocol has told the status, or nobody is there to be told
        try:
            if response is not None and not self.disconnected:
                left = self._protocol.answered(response, keep_alive=self.keep_alive)
        finally:  # whoever waits for the answer waits for no figure
            if left:
                self._account.close(status, error, timing, ended)
            else:
                self._account.close(CLIENT_LEFT, ended=ended)


class DirectPath:
    """What the protocol asks of each request: takes those to one path that are ordinary.

    Args:
        endpoint: What is there.
        path: Where.
    """

    def __init__(self, endpoint: Endpoint, path: bytes) -> None:
        self.inflight = endpoint.serving.inflight
        self.max_bytes = min(LARGE_BODY_BYTES, endpoint.serving.settings.max_body_bytes)
        self._endpoint = endpoint
        self._path = path

    def take(self, protocol: ShortcutProtocol, method: bytes, url: bytes, raw: endpoints.Headers) -> Direct | None:
        """See `lengthwise.http.fast_path.Shortcut`."""
        if url != self._path or method != b"POST":
            return None
        headers = headers_of(raw)
        # Where there is no room for it, or no key, it is refused before its body is read, which Direct does not.
        if not ordinary(headers, min(self.max_bytes, self.inflight.free)) or not self._endpoint.knows(headers):
            return None
        return Direct(protocol, self._endpoint, headers)

    def again(self, protocol: ShortcutProtocol, headers: dict[bytes, bytes]) -> Direct:
        """See `lengthwise.http.fast_path.Shortcut`."""
        return Direct(protocol, self._endpoint, headers)
