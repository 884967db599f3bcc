"""Reads the requests of one connection, as httptools parses them, within the bounds of a header block.

The callbacks of the parser depend on the state of the connection, and report events that change it. Trailers are
never headers: they are counted and dropped. A header block that asks for another protocol is parsed once more without
that header, because the parser ends a request with such a block, and would read its body as the next request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httptools

from lengthwise.connections.request_limits import RequestLimits
from lengthwise.http.framing import fault
from lengthwise.http.states import BODY, ENDED, HEAD, UPGRADE, Event

if TYPE_CHECKING:
    from lengthwise.http.connection import Connection

PIECE_BYTES: Final = 2048  # data that are parsed at once where a body may come in chunks
# After this many parts of a chunked body, the rest is parsed in the next turn of the event loop: each part is a call of
# Python, and a read of 256 KiB may have 43,000 of them.
MOST_PARTS: Final = 256
_FIELD_BYTES: Final = 150  # that a header field takes in memory, besides its text


@dataclass(slots=True)
class Head:
    """The request line and the headers of a request."""

    url: bytes = b""  # the target: path and query
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # by lower-case name
    wants_continue: bool = False  # the client waits for `100 Continue` before it sends the body
    method: bytes = b""
    version: str = ""  # HTTP's, such as `1.1`
    keep_alive: bool = False  # the connection stays open after the answer

    @property
    def size(self) -> int:
        """Bytes that the head takes in memory, approximately."""
        return len(self.url) + sum(_FIELD_BYTES + len(name) + len(value) for name, value in self.headers)


class TooManyFields(Exception):
    """A request has more header fields than it may have."""


class RequestReader:
    """The callbacks of the parser; they pass heads, parts of bodies and refusals on to the connection."""

    def __init__(self, connection: Connection, limits: RequestLimits) -> None:
        self._connection = connection
        self._limits = limits
        self._begin_parser()
        self._head = Head()  # of the request that is being read
        self._bytes = 0  # of the header block and the trailers so far
        self._fields = 0  # number of headers and trailers so far

    def _begin_parser(self) -> None:
        """Makes a new parser."""
        self._parser = httptools.HttpRequestParser(self)
        # Data after a request with `connection: close` are no error: the request must still be answered.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def in_chunks(self) -> bool:
        """Whether the body that is being read comes in chunks."""
        return any(name == b"transfer-encoding" for name, _ in self._head.headers)

    def close(self) -> None:
        """Drops the parser and the connection, once that is lost: they refer to each other."""
        del self._parser, self._connection

    def feed(self, data: bytes) -> None:
        """Parses data; the callbacks report what they contain to the connection. Data that are not HTTP are refused.

        At the end of a header block that asks for another protocol, the parser raises `HttpParserUpgrade`, with the
        index of the data after the block. Then the loop runs again: with the block without that header, and these data.
        """
        connection = self._connection
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if connection.state is not UPGRADE or connection.transport.is_closing():  # the request was refused
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                connection.refuse(400, "Invalid HTTP request received.")
                return
            else:
                return

    def piece_bytes(self, data: bytes) -> int:
        """The size of the pieces in which `data` are parsed: `PIECE_BYTES` if there may be a body in chunks, else all.

        Chunks may have one byte each, and each one calls `on_body`. So the parser gets small pieces, and after each of
        them the connection looks how many calls there were.
        """
        state, size = self._connection.state, max(1, len(data))
        if size <= PIECE_BYTES:
            return size
        may_have_chunks = (state is BODY and self.in_chunks) or state in (HEAD, UPGRADE) or b"chunked" in data.lower()
        return PIECE_BYTES if may_have_chunks else size

    def _without_upgrade(self) -> bytes:
        """The last header block as bytes, without the `upgrade` header: a new parser gets it, with a new head.

        The old one would read nothing more if the connection ends with this request.
        """
        head = self._head
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), head.url, self._parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in head.headers if header[0] != b"upgrade"]
        self._head = Head()
        self._begin_parser()
        return b"\r\n".join([*lines, b"", b""])

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Called at the first byte of a request."""
        self._connection.enter(Event.FIRST_BYTE)
        self._fields = 0

    def on_url(self, url: bytes) -> None:
        """Adds a part of the target to the head."""
        if self._connection.state is HEAD:
            self._head.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header to the head; a trailer is only counted and dropped.

        Raises:
            TooManyFields: There are more fields than allowed; the request was refused, and the parser must stop.
        """
        state = self._connection.state
        self._fields += 1
        if self._fields > self._limits.fields:
            self._connection.refuse(431, f"headers and trailers may have {self._limits.fields} fields together")
            raise TooManyFields  # stops the parser: thousands of fields may follow
        if state is HEAD:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._head.wants_continue = True
            self._head.headers.append((name, value))
        elif state is BODY:
            self._bytes += len(name) + len(value) + 4
            if self._bytes > self._limits.header_bytes:
                self._connection.refuse(431)

    def on_headers_complete(self) -> None:
        """Refuses the request of a complete header block, or begins it; for an `upgrade` only sets the state."""
        connection, parser, head = self._connection, self._parser, self._head
        if connection.state in ENDED:
            return
        head.version = parser.get_http_version()
        if parser.should_upgrade():  # `feed` has the block parsed again, without `upgrade`
            if any(name == b"upgrade" for name, _ in head.headers):
                connection.enter(Event.ASKS_FOR_UPGRADE)
            else:
                connection.refuse(400, "CONNECT is for proxies")
            return
        self._bytes = len(head.url) + sum([len(name) + len(value) + 4 for name, value in head.headers])
        if self._bytes > self._limits.header_bytes:
            connection.refuse(431)
        elif (why := fault(head.version, head.headers)) is not None:
            connection.refuse(400, why)
        else:
            head.method = parser.get_method()
            head.keep_alive = head.version != "1.0" and parser.should_keep_alive()
            connection.request_begins(head)

    def on_body(self, body: bytes) -> None:
        """Passes a part of the body to the connection."""
        if self._connection.state is BODY:
            self._connection.body_part(body)

    def on_message_complete(self) -> None:
        """Reports the end of the body; the next header block may begin."""
        if self._connection.state is BODY:
            self._connection.enter(Event.BODY_COMPLETE)
            self._head = Head()  # free the headers now: the next request may come in a minute
            self._connection.body_complete()
