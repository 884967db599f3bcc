"""One request through ASGI, and its answer: what the application receives, and how what it sends is written."""

from __future__ import annotations

import asyncio
import logging
import re
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

import httptools
from starlette.types import ASGIApp, Message, Scope

from lengthwise.http.fast_request import STATUS_LINES, common_lines, header_lines
from lengthwise.http.request_reader import Head
from lengthwise.protocols.body import DELIVERY, Delivery
from lengthwise.protocols.problems import CLOSE

if TYPE_CHECKING:
    from lengthwise.http.connection import Connection

log = logging.getLogger("lengthwise.app")

MOST_UNREAD: Final = 65_536  # bytes of a body that the application has not received: then the connection is not read
_NO_NAME: Final = re.compile(rb"[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\\"]")
_NO_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = (204, 304)


class AsgiRequest:
    """One request through ASGI; `more` is what the scopes of all requests of the connection have."""

    def __init__(self, connection: Connection, head: Head, root_path: str, more: dict[str, Any]) -> None:
        url = httptools.parse_url(head.url)
        path = url.path.decode("ascii")
        self.delivery = Delivery()  # whether the answer was sent
        self._scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method.decode("ascii"),
            "path": root_path + (urllib.parse.unquote(path) if "%" in path else path),
            "raw_path": root_path.encode("ascii") + url.path,
            "query_string": url.query or b"",
            "root_path": root_path,
            "headers": head.headers,
            "extensions": {DELIVERY: self.delivery},
            **more,
        }
        self.keep_alive = head.keep_alive  # cleared by an answer that ends the connection
        self.response_started = False  # the head of the answer was written
        self.response_complete = False
        self._connection = connection
        self._wants_continue = head.wants_continue and head.version != "1.0"  # which has no such answer
        self._is_disconnected = False  # the client, or its interest in this answer
        self._event = asyncio.Event()  # something to receive
        self._body = bytearray()
        self._more_body = True
        self._chunked = False
        self._left = 0  # bytes of the answer's body that its head has announced

    # What the connection reports.

    def body_part(self, body: bytes) -> None:
        """A part of the body is here."""
        if self.response_complete:
            return
        self._body += body
        if len(self._body) > MOST_UNREAD:
            self._connection.flow.pause_reading()
        self._event.set()

    def body_complete(self) -> None:
        """The body is complete."""
        self._more_body = False
        self._event.set()

    def client_left(self) -> None:
        """The connection is lost: tells the application at its next receive, and drops what it sends."""
        self._is_disconnected = True
        self._event.set()

    def refused(self, status: int) -> None:
        """Called when the connection has written this status instead of the answer, and ends."""
        self.delivery.refused = status
        self._wants_continue = False
        self.client_left()

    # ASGI.

    async def run(self, app: ASGIApp) -> None:
        """Runs the application for this request; one that breaks is answered with 500."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("the application failed")
        else:
            if not self.response_complete and not self._is_disconnected:
                log.error("the application returned without a whole answer")
        if self.response_complete or self._is_disconnected:
            return
        if self.response_started:
            self._connection.transport.close()
        else:
            headers = [(b"content-length", b"0"), CLOSE]
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body"})

    async def receive(self) -> Message:
        """The next part of the body; that the client has left; or that the answer was written."""
        connection = self._connection
        if self._wants_continue:
            self._wants_continue = False
            if not connection.transport.is_closing():
                connection.transport.write(_CONTINUE)
        if not self._is_disconnected and not self.response_complete:
            connection.flow.resume_reading()
            await self._event.wait()
            self._event.clear()
        if self._is_disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self._more_body}

    async def send(self, message: Message) -> None:
        """Writes a part of the answer; on a connection that is closing it is dropped, and does not count as written.

        Raises:
            RuntimeError: The application sends another message than the next one of ASGI.
        """
        flow, transport = self._connection.flow, self._connection.transport
        if flow.write_paused and not self._is_disconnected:
            await flow.drain()
        if transport.is_closing() or flow.lost():
            self._is_disconnected = True
        if self._is_disconnected:
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected or self.response_complete:
            raise RuntimeError(f"expected {expected}, got {message['type']}")
        if not self.response_started:
            self._start(message["status"], message.get("headers", ()))
            return
        self._write(message.get("body", b""), more=message.get("more_body", False))
        self.delivery.answered = self.response_complete

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Writes the head of the answer.

        Raises:
            RuntimeError: A header has characters that HTTP does not allow.
        """
        written = [(name.lower(), value) for name, value in headers]
        for name, value in written:
            if _NO_NAME.search(name) or _NO_VALUE.search(value):
                raise RuntimeError(f"the header {name!r} cannot be written")
        named = dict(written)
        closes = b"close" in [token.strip() for token in named.get(b"connection", b"").lower().split(b",")]
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            written.append(CLOSE)
        has_body = self._scope["method"] != "HEAD" and status not in _BODILESS
        self._left = int(named.get(b"content-length", 0)) if has_body else 0
        self._chunked = has_body and b"content-length" not in named
        if self._chunked and b"transfer-encoding" not in named:
            written.append((b"transfer-encoding", b"chunked"))
        self.response_started = True
        self._wants_continue = False
        common = common_lines(tuple(self._connection.server_state.default_headers))
        head = STATUS_LINES[status], common, header_lines(written), b"\r\n"
        self._connection.transport.write(b"".join(head))

    def _write(self, body: bytes, *, more: bool) -> None:
        """Writes a part of the answer's body.

        Raises:
            RuntimeError: The body is longer or shorter than its content-length.
        """
        transport = self._connection.transport
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if chunk or not more:
                transport.write(chunk if more else chunk + b"0\r\n\r\n")
        elif self._scope["method"] != "HEAD":
            if len(body) > self._left or (not more and len(body) < self._left):
                raise RuntimeError("the body of the answer is not as long as its head says")
            self._left -= len(body)
            transport.write(body)
        if not more:
            self.response_complete = True
            self._event.set()
            if not self.keep_alive:
                transport.close()
            self._connection.on_response_complete()
