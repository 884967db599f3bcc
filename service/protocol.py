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
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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


class BoundedProtocol(HttpToolsProtocol):
    """One connection, within bounds.

    Args:
        header_timeout_seconds: Longest that a head may take, from its first byte; the first from the connection on.
        max_connections: Most connections at once.
        options: uvicorn's own.
    """

    def __init__(self, *, header_timeout_seconds: float, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Takes a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(503)
        else:
            self._start_timer(self._header_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection's timer with the connection, and the requests that had not begun."""
        self._stop_timer()
        super().connection_lost(exc)
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Parses what came, and watches what is still to come."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        self._parse(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self._in_body:
                self._watch_body()
            elif self._in_head and self._head_bytes:
                self._start_timer(self._header_timeout, self._head_is_late)

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
        else:
            self._begin()

    def _begin(self) -> None:
        """A head within bounds: its request begins, or waits for the one before it."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hands a part of the body on, unless the request was refused."""
        if not self._refused and self.cycle is not None:
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
        self._complete()

    def _complete(self) -> None:
        """A request within bounds is there as a whole."""
        if self.cycle is not None:
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
        super().on_response_complete()
        if self.flow.write_paused:
            self.flow.pause_reading()

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
            self._break_off(status)
        elif not (status == 408 and not self._head_bytes):  # whoever said nothing is told nothing
            self._write_refusal(status)
        self.transport.close()

    def _break_off(self, status: int) -> None:
        """Ends a request of which not all has come."""
        self.cycle.scope.setdefault("extensions", {})[REFUSED] = {"status": status}
        if not self.cycle.response_started:
            self._write_refusal(status)

    def _write_refusal(self, status: int) -> None:
        reason = _REASONS[status].encode()
        body = b'{"type":"about:blank","title":"%s","status":%d,"detail":"%s"}' % (reason, status, reason)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, reason, len(body), body)
        )
