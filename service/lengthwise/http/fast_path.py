"""The way past ASGI: a request that an endpoint takes whole, from the parser's callbacks to one write of its answer.

What may take requests is a `Shortcut`; what it makes of one is an `Exchange`, which stands where uvicorn keeps its own
cycle of request and response, so that pipelining, keep-alive and shutdown go on as they are. A request whose head is
that of the one before it (`lengthwise.http.head_cache`) does without the parser, too.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from lengthwise.http.connection import ENDED, IDLE, BoundedProtocol
from lengthwise.http.head_cache import KnownHead
from lengthwise.inflight import Hold, Inflight


class Exchange(Protocol):
    """A request that does without ASGI; stands where uvicorn keeps its own cycle of request and response."""

    headers: dict[bytes, bytes]
    keep_alive: bool
    disconnected: bool
    response_started: bool

    @property
    def message_event(self) -> Exchange:
        """Itself: its `set` is called when the connection is lost."""

    @property
    def response_complete(self) -> bool:
        """Whether the next request may begin."""

    def came(self, size: int) -> None:
        """So many bytes more of the body are here."""

    def run(self, body: bytes) -> None:
        """The body is here, as a whole."""

    def set(self) -> None:
        """The connection was lost."""

    def refused(self, status: int) -> None:
        """The connection ends with that status."""


class Shortcut(Protocol):
    """What may take requests before ASGI does."""

    max_bytes: int
    """The largest body that it takes."""
    inflight: Inflight
    """Where answers are counted that their clients do not read."""

    def take(
        self, protocol: ShortcutProtocol, method: bytes, url: bytes, raw: list[tuple[bytes, bytes]]
    ) -> Exchange | None:
        """Takes a request, by its method, URL and headers, or leaves it to ASGI."""

    def again(self, protocol: ShortcutProtocol, headers: dict[bytes, bytes]) -> Exchange:
        """Takes a request like one that it took before: with these headers, by lower-case name."""


class HeaderLines:
    """Headers as they are written; of those that are the same list as the last ones, written once."""

    def __init__(self) -> None:
        self._last: tuple[object, bytes] = (None, b"")

    def of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Each as a line. A list that was given is not changed afterwards: uvicorn makes another every second."""
        given, lines = self._last
        if given is not headers:
            lines = b"".join([b"%s: %s\r\n" % header for header in headers])
            self._last = headers, lines  # one assignment: runner threads ask, too
        return lines


class ShortcutProtocol(BoundedProtocol):
    """One connection, within bounds, whose ordinary requests go past ASGI.

    Args:
        shortcut: What may take requests before ASGI does.
        options: Of `BoundedProtocol`, and uvicorn's own.
    """

    _lines = HeaderLines()

    def __init__(self, *, shortcut: Shortcut, **options: Any) -> None:
        super().__init__(**options)
        self._shortcut = shortcut
        self._unwritten = Hold(shortcut.inflight)
        self._ahead = Hold(shortcut.inflight)  # bodies of requests that wait for the one before them
        self._exchange: Exchange | None = None
        self._body: list[bytes] = []  # of the exchange's request, while it is read
        self._known: KnownHead | None = None
        self._took = False  # a request of those that came with the last read
        self._answered_at = 0.0

    @property
    def default_headers(self) -> bytes:
        """The header lines of every response: the date."""
        return self._lines.of(self.server_state.default_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of the exchange, which knows the connection as the connection knows it."""
        super().connection_lost(exc)
        self._unwritten.close()
        self._ahead.close()
        self._exchange = None

    def data_received(self, data: bytes) -> None:
        """Knows a request by the head of the one before it, or has it parsed, and remembers its head."""
        whole = self._reading is IDLE
        if whole and self._known is not None and self._is_known(self._known, data):
            return
        before = self._exchange
        self._took = False
        super().data_received(data)
        if whole and self._reading is IDLE and self._exchange is not before and self._exchange is not None:
            self._known = KnownHead.of(data, self._exchange.headers)

    def _is_known(self, known: KnownHead, data: bytes) -> bool:
        """Whether a whole request came that has the head of one before; it is taken then, past the parser."""
        if self._owes() or self.transport.is_closing():
            return False
        body = known.body(data, self._shortcut.max_bytes)
        if body is None:
            return False
        self._stop_timer()
        self._unparsed_bytes = 0
        exchange = self._shortcut.again(self, known.headers)
        self._stand_in(exchange)
        exchange.run(body)
        return True

    def _begin(self) -> None:
        """Takes the request where its connection is free and stays open, and the shortcut wants it.

        Of those that came with one read only the first: a wrong one is answered here and now, and hundreds in a row
        would hold the event loop. Through ASGI each has a turn of its own.
        """
        free = not self._took and not self._owes()
        if free and self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive():
            exchange = self._shortcut.take(self, self.parser.get_method(), self.url, self.headers)
            if exchange is not None:
                self._took = True
                self._body.clear()
                self._stand_in(exchange)
                return
        super()._begin()

    def _stand_in(self, exchange: Exchange) -> None:
        self._exchange = self._front = exchange
        self.cycle = exchange  # type: ignore[assignment]  # what uvicorn asks of a cycle, an exchange answers

    def _current(self) -> Exchange | None:
        """The exchange of the request that is being read or answered; None where it goes through ASGI."""
        return self._exchange if self._exchange is cast("object", self.cycle) else None

    def _take(self, body: bytes) -> None:
        """A part of the body of a request that is being read."""
        exchange = self._current()
        if exchange is None:
            super()._take(body)
            if self.pipeline:
                self._ahead.holds(self._ahead.size + len(body))
            return
        exchange.came(len(body))
        if exchange.response_complete:  # there was no room for it: the rest is for nobody
            self._body.clear()
        else:
            self._body.append(body)

    def _complete(self) -> None:
        """The request is there as a whole."""
        exchange = self._current()
        if exchange is None:
            super()._complete()
        else:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            exchange.run(body)

    def answered(self, response: bytes, *, keep_alive: bool) -> bool:
        """Writes an exchange's whole response; the next request may begin.

        Returns:
            Whether the connection took it.
        """
        if self.transport.is_closing() or self.flow.lost():
            return False
        self.transport.write(response)
        if self.transport.is_closing():  # the client was found to be gone
            return False
        if self.flow.write_paused:
            self._unwritten.holds(self.transport.get_write_buffer_size())
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def pause_writing(self) -> None:
        """The client does not read: what it has yet to read is in hand."""
        super().pause_writing()
        self._unwritten.holds(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read nearly all."""
        self._unwritten.close()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """The next request may begin; a timer that still runs for the connection's end is left to run."""
        self._answered_at = self.loop.time()
        if self._ahead.size and len(self.pipeline) <= 1:  # the last of them begins, and counts its own
            self._ahead.close()
        if (
            self.timeout_keep_alive_task is None
            or self.pipeline
            or self._reading is ENDED
            or self.transport.is_closing()
        ):
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection on which nothing was asked for long enough.

        A request whose head is known leaves the timer of the answer before it as it is, so it may come too soon.
        """
        self.timeout_keep_alive_task = None
        if self.cycle is None or self._owes():
            return  # the connection is gone, or the answer will set another
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()
