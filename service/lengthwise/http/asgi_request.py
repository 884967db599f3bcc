"""One request that the ASGI application answers: its `receive` and `send`, and the bytes of its answer.

The connection reports what arrives (`body_part`, `body_complete`, `client_left`, `refused`). The application takes it
with `receive`, and writes its answer with `send`.
"""

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

MOST_UNREAD: Final = 65_536  # bytes of a body that wait for `receive`; with more, reading from the connection is paused
_INVALID_IN_NAME: Final = re.compile(rb"[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\\"]")
_INVALID_IN_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = (204, 304)  # statuses whose answers have no body


class AsgiRequest:
    """One request that the ASGI application answers; an `AsgiRequest` is used for one call only.

    `scope_entries` are added to the request's scope: the client, the server, the scheme, and the state of the lifespan.
    """

    def __init__(self, connection: Connection, head: Head, root_path: str, scope_entries: dict[str, Any]) -> None:
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
            "extensions": {DELIVERY: self.delivery},  # tells the endpoint whether its answer was sent
            **scope_entries,
        }
        self.keep_alive = head.keep_alive  # cleared by an answer that ends the connection
        self.response_started = False  # the head of the answer was written
        self.response_complete = False
        self._connection = connection
        self._wants_continue = head.wants_continue and head.version != "1.0"  # HTTP/1.0 has no status 100
        self._is_disconnected = False  # the client has left, or a refusal was written: no more is written
        self._event = asyncio.Event()  # set when `receive` has something to return
        self._body = bytearray()  # what arrived since the last `receive`
        self._more_body = True  # the end of the body has not arrived
        self._is_chunked = False  # the answer has no content-length, so its body is written in chunks
        self._unsent_bytes = 0  # of the answer's content-length, those that the application has not sent

    # What the connection reports.

    def body_part(self, body: bytes) -> None:
        """Keeps a part of the body for `receive`; pauses reading when more than `MOST_UNREAD` bytes wait."""
        if self.response_complete:
            return
        self._body += body
        if len(self._body) > MOST_UNREAD:
            self._connection.flow.pause_reading()
        self._event.set()

    def body_complete(self) -> None:
        """Notes the end of the body: the next `receive` returns the rest, with `more_body` false."""
        self._more_body = False
        self._event.set()

    def client_left(self) -> None:
        """Notes that the connection is lost: `receive` returns `http.disconnect`, and `send` writes nothing more."""
        self._is_disconnected = True
        self._event.set()

    def refused(self, status: int) -> None:
        """Notes that the connection wrote a refusal with this status instead of the answer, and ends."""
        self.delivery.refused = status
        self._wants_continue = False
        self.client_left()

    # ASGI.

    async def run(self, app: ASGIApp) -> None:
        """Runs the application for this request.

        Where it raises, or returns before its answer is complete, the client gets 500; if the answer had begun, the
        connection is closed, so that the client notices.
        """
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("the application failed")
        else:
            if not self.response_complete and not self._is_disconnected:
                log.error("the application returned without a whole answer")
        if self.response_complete or self._is_disconnected:
            return
        # The answer is not complete: end the connection, or answer 500.
        if self.response_started:
            self._connection.transport.close()
        else:
            await self.send(
                {"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0"), CLOSE]}
            )
            await self.send({"type": "http.response.body"})

    async def receive(self) -> Message:
        """Waits for a part of the body, and returns it as ASGI's `http.request`.

        Returns `http.disconnect` instead if the client has left, or the answer is complete. The first call also writes
        `100 Continue` if the client waits for that before it sends the body.
        """
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
        """Writes a part of the answer; a closing connection drops it, and the answer then does not count as sent.

        Raises:
            RuntimeError: The application sends another message than the next one of ASGI.
        """
        flow, transport = self._connection.flow, self._connection.transport
        if flow.write_paused and not self._is_disconnected:
            await flow.drain()
        if transport.is_closing() or flow.lost():  # the client has left
            self._is_disconnected = True
        if self._is_disconnected:
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected or self.response_complete:
            raise RuntimeError(f"expected {expected}, got {message['type']}")
        if not self.response_started:
            self._start(message["status"], message.get("headers", ()))
        else:
            self._write(message.get("body", b""), more_body=message.get("more_body", False))
            self.delivery.answered = self.response_complete

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Writes the head of the answer. Its headers decide how the body is written, and whether the connection ends.

        Raises:
            RuntimeError: A header has characters that HTTP does not allow.
        """
        fields = [(name.lower(), value) for name, value in headers]
        for name, value in fields:
            if _INVALID_IN_NAME.search(name) or _INVALID_IN_VALUE.search(value):
                raise RuntimeError(f"the header {name!r} cannot be written")
        values = dict(fields)
        # The application or the request may end the connection after this answer.
        connection_options = [option.strip() for option in values.get(b"connection", b"").lower().split(b",")]
        if b"close" in connection_options:
            self.keep_alive = False
        elif not self.keep_alive:
            fields.append(CLOSE)
        # A body has a content-length or is written in chunks.
        has_body = self._scope["method"] != "HEAD" and status not in _BODILESS
        self._unsent_bytes = int(values.get(b"content-length", 0)) if has_body else 0
        self._is_chunked = has_body and b"content-length" not in values
        if self._is_chunked and b"transfer-encoding" not in values:
            fields.append((b"transfer-encoding", b"chunked"))
        self.response_started = True
        self._wants_continue = False
        self._connection.transport.write(
            b"".join(
                (
                    STATUS_LINES[status],
                    common_lines(tuple(self._connection.server_state.default_headers)),
                    header_lines(fields),
                    b"\r\n",
                )
            )
        )

    def _write(self, body: bytes, *, more_body: bool) -> None:
        """Writes a part of the answer's body.

        After the last part (not `more_body`) the connection goes on to its next request.

        Raises:
            RuntimeError: The body is longer or shorter than its content-length.
        """
        transport = self._connection.transport
        if self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""  # an empty chunk would end the body
            last_chunk = b"" if more_body else b"0\r\n\r\n"
            if chunk or last_chunk:
                transport.write(chunk + last_chunk)
        elif self._scope["method"] != "HEAD":  # an answer to HEAD has no body
            if len(body) > self._unsent_bytes or (not more_body and len(body) < self._unsent_bytes):
                raise RuntimeError("the body of the answer is not as long as its head says")
            self._unsent_bytes -= len(body)
            transport.write(body)
        if not more_body:
            self.response_complete = True
            self._event.set()
            if not self.keep_alive:
                transport.close()
            self._connection.on_response_complete()
