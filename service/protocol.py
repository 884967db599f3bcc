"""The limits that uvicorn's HTTP parser does not have: large heads, slow heads, slow bodies, too many connections.

A client gets a bounded time to say what it wants and a bounded number of bytes to say it in. The bounds cost nothing
where a request arrives in one piece, as nearly all do: a timer runs only while a head or a body is incomplete.

| what | answer |
|---|---|
| more than `max_header_bytes` of request line and headers | 431, and the connection ends |
| a head that is not complete in `header_timeout_seconds` | 408, likewise |
| a body that brings less than `MIN_BODY_BYTES_PER_SECOND` | 408, likewise |
| more than `max_connections` connections | 503, likewise |
| more than `MAX_PIPELINED` requests behind one that is being answered | the connection ends |

A client that does not read its answers is not read from either. One that asks for another protocol (`upgrade`) is
answered in this one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.heads import KnownHead

MAX_HEADER_BYTES: Final = 32_768
MIN_BODY_BYTES_PER_SECOND: Final = 1024
MAX_PIPELINED: Final = 64
"""Requests that may wait behind one that is being answered."""
_BODY_PERIOD_SECONDS: Final = 10.0

REFUSED: Final = "lengthwise.refused"
"""ASGI extension: the status that a connection was ended with while its request was being read."""
_REASONS: Final = {
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Exchange(Protocol):
    """A request that does without ASGI; stands where uvicorn keeps its own cycle of request and response."""

    body: list[bytes]
    headers: dict[bytes, bytes]
    keep_alive: bool
    disconnected: bool

    @property
    def response_complete(self) -> bool:
        """Whether the next request may begin."""

    def run(self) -> None:
        """The body is here."""

    def set(self) -> None:
        """The connection was lost."""

    def refused(self, status: int) -> None:
        """The connection ends with that status."""


class Shortcut(Protocol):
    """What may take requests before ASGI does."""

    max_bytes: int
    """The largest body that it takes."""

    def take(
        self, protocol: BoundedProtocol, method: bytes, url: bytes, raw: list[tuple[bytes, bytes]]
    ) -> Exchange | None:
        """Takes a request, by its method, URL and headers, or leaves it to ASGI."""

    def again(self, protocol: BoundedProtocol, headers: dict[bytes, bytes]) -> Exchange:
        """Takes a request like one that it took before: with these headers, by lower-case name."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection, within bounds.

    Args:
        shortcut: What may take requests before ASGI does.
        header_timeout_seconds: Longest that a head may take, from its first byte; the first from the connection on.
        max_connections: Most connections at once.
        options: uvicorn's own.
    """

    def __init__(
        self,
        *,
        header_timeout_seconds: float,
        max_connections: int,
        shortcut: Shortcut | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._shortcut = shortcut
        self._exchange: Exchange | None = None
        self._refused = False
        self._header_timeout = header_timeout_seconds
        self._max_connections = max_connections
        self._head_bytes = 0
        self._in_head = True
        self._in_body = False
        self._body_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._in_message = False
        self._declines_upgrade = False
        self._known: KnownHead | None = None
        self._answered_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Takes a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(503)
        else:
            self._start_timer(self._header_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection's timer with the connection."""
        self._stop_timer()
        exchange = self._exchange
        if exchange is not None and not exchange.response_complete:
            exchange.disconnected = True
            exchange.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came, and watches what is still to come."""
        if self._refused or self.transport.is_closing():
            return
        whole = not self._in_message
        if whole and self._known is not None and self._is_known(self._known, data):
            return
        exchange = self._exchange
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        self._parse(data)
        if whole and not self._in_message and self._exchange is not exchange and self._exchange is not None:
            self._known = KnownHead.of(data, self._exchange.headers)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self._in_body:
                self._watch_body()
            elif self._in_head and self._head_bytes:
                self._start_timer(self._header_timeout, self._head_is_late)

    def _is_known(self, known: KnownHead, data: bytes) -> bool:
        """Whether a whole request came that has the head of one before; it is taken then, past the parser."""
        shortcut = self._shortcut
        if shortcut is None or not self.cycle.response_complete:
            return False
        body = known.body(data, shortcut.max_bytes)
        if body is None:
            return False
        self._stop_timer()
        self._exchange = exchange = shortcut.again(self, known.headers)
        self.cycle = cast("RequestResponseCycle", exchange)
        exchange.body.append(body)
        exchange.run()
        return True

    def _parse(self, data: bytes) -> None:
        """Feeds the parser; past a head that asks for another protocol, which there is none of, it goes on as before.

        The parser ends a request with such a head, and would take its body for the next request.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._declines_upgrade or self._refused or self.transport.is_closing():
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._declines_upgrade = False
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                if self._in_head and self.cycle is not None and not self.cycle.response_complete:
                    self._refuse(400)  # behind the answer that the request before waits for
                else:
                    self.send_400_response("Invalid HTTP request received.")
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """The head that was parsed last, as if it asked for no other protocol."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there: from here on the body is watched."""
        if self._refused:
            return
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):
            self._declines_upgrade = True
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._stop_timer()
        if size > MAX_HEADER_BYTES:
            self._refuse(431)
            return
        self._in_head, self._in_body = False, True
        self._head_bytes = self._body_bytes = 0
        if len(self.pipeline) > MAX_PIPELINED:
            self._refused = True
            self.transport.close()
        elif not self._take_shortcut():
            super().on_headers_complete()

    def _take_shortcut(self) -> bool:
        """Whether the request goes past ASGI: the connection is free and stays open, and the shortcut takes it."""
        if self._shortcut is None or not (self.cycle is None or self.cycle.response_complete):
            return False
        if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive():
            return False
        exchange = self._shortcut.take(self, self.parser.get_method(), self.url, self.headers)
        if exchange is not None:
            self._exchange = exchange
            self.cycle = cast("RequestResponseCycle", exchange)
        return exchange is not None

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every response: the date."""
        return self.server_state.default_headers

    def answered(self, response: bytes, *, keep_alive: bool) -> None:
        """Writes an exchange's whole response; the next request may begin."""
        if self.transport.is_closing():
            return
        self.transport.write(response)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Hands a part of the body on, unless the request was refused."""
        if self._refused:
            return
        if self._exchange is not None and self._exchange is cast("object", self.cycle):
            self._exchange.body.append(body)
        elif self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole; the next head may begin."""
        if self._declines_upgrade:
            return
        self._in_message = False
        if self._refused:
            return
        self._stop_timer()
        self._in_head, self._in_body = True, False
        if self._exchange is not None and self._exchange is cast("object", self.cycle):
            self._exchange.run()
        elif self.cycle is not None:
            super().on_message_complete()

    def _watch_body(self) -> None:
        self._body_bytes = 0
        self._start_timer(_BODY_PERIOD_SECONDS, self._check_body)

    def _check_body(self) -> None:
        if self._body_bytes < MIN_BODY_BYTES_PER_SECOND * _BODY_PERIOD_SECONDS:
            self._refuse(408)
        else:
            self._watch_body()

    def _head_is_late(self) -> None:
        self._refuse(408)

    def _start_timer(self, seconds: float, action: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """The client does not read: nothing more is read from it."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """The next request may begin, unless the client has yet to read the answers that it has."""
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None or self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
        if self.flow.write_paused:
            self.flow.pause_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection on which nothing was asked for long enough.

        A request whose head is known leaves the timer of the answer before it as it is, so it may come too soon.
        """
        self.timeout_keep_alive_task = None
        if not self.cycle.response_complete:
            return  # the answer will set another
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _refuse(self, status: int) -> None:
        """Says why, and ends the connection: at once, or behind the answer that a request before this one waits for."""
        self._stop_timer()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            if self._in_head:  # what is refused is the request behind it
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            if self._exchange is cast("object", self.cycle):
                self._write_refusal(status)
                cast("Exchange", self._exchange).refused(status)
            else:
                self.cycle.scope.setdefault("extensions", {})[REFUSED] = {"status": status}
                if not self.cycle.response_started:
                    self._write_refusal(status)
        elif not (status == 408 and not self._head_bytes):  # whoever said nothing is told nothing
            self._write_refusal(status)
        self.transport.close()

    def _write_refusal(self, status: int) -> None:
        reason = _REASONS[status].encode()
        body = b'{"type":"about:blank","title":"%s","status":%d,"detail":"%s"}' % (reason, status, reason)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, reason, len(body), body)
        )
