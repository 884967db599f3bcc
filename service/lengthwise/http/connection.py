"""One HTTP connection, within bounds: how its requests are read, in which order they are answered, and how it ends.

A client gets a bounded time to say what it wants, a bounded number of bytes to say it in, and a bounded time to take
its answers. The bounds cost nothing where a request arrives in one piece, as nearly all do: a timer runs only while a
head or a body is incomplete and is being read, or while bytes stay unread.

| what | answer |
|---|---|
| no HTTP, or a head that two programs could read differently (`http.framing`) | 400, and the connection ends |
| more than `max_header_bytes` of request line, headers and trailers | 431, likewise |
| a head that is not complete in `header_timeout_seconds` | 408, likewise |
| a body that brings less than `MIN_BODY_BYTES_PER_SECOND` | 408, likewise |
| more than `max_connections` connections | 503, likewise |
| more than `MAX_PIPELINED` requests behind one that is being answered | those are answered, and the connection ends |
| answers that are not taken (`lengthwise.connections.unread`) | the connection is aborted |

Answers keep the order of the requests, and so do refusals: nothing is written in the place of an earlier answer. After
a refusal nothing more is parsed, and what still comes is thrown away, so that the last answer is not lost to a reset
(`closing`). Trailers are never headers: they are counted and dropped. A client that does not read its answers
is not read from either. One that asks for another protocol (`upgrade`) is answered in this one. One that sends no more,
but may still read (`shutdown(SHUT_WR)`), has `HALF_CLOSED_SECONDS` for its answers, because nothing tells it from one
that has left; over TLS it has left.

Used of uvicorn's private parts (0.54), beside those that `http.cycle` names: the attributes `cycle`, `pipeline`,
`flow`, `scope`, `headers`, `url`, `parser` and `timeout_keep_alive_task` of its `HttpToolsProtocol`, `_start_asgi_task`
and `_unset_keepalive_if_required`.
"""

from __future__ import annotations

import asyncio
import enum
import urllib.parse
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lengthwise.connections.closing import gently
from lengthwise.connections.unread import PATIENCE_SECONDS, UnreadWatch
from lengthwise.http.cycle import Cycle, Flow
from lengthwise.http.framing import MalformedLog, fault
from lengthwise.protocols.body import CLIENT_LEFT, OUTCOME, Outcome

MAX_HEADER_BYTES: Final = 32_768
MIN_BODY_BYTES_PER_SECOND: Final = 1024
MAX_PIPELINED: Final = 64
"""Requests that may wait behind one that is being answered."""
HALF_CLOSED_SECONDS: Final = 2.0
_BODY_PERIOD_SECONDS: Final = 10.0
_SILENT: Final = 0
"""In the place of a status: the connection ends without a word."""


class Reading(enum.Enum):
    """What of a request is expected next."""

    IDLE = "its first byte"
    HEAD = "the rest of its head"
    BODY = "the rest of its body, trailers included"
    ENDED = "nothing more: the connection ends behind the answers that it owes"


# Plain names: to look up the member of an enum takes longer than to compare it.
IDLE, HEAD, BODY, ENDED = Reading.IDLE, Reading.HEAD, Reading.BODY, Reading.ENDED


class BoundedProtocol(HttpToolsProtocol):
    """One connection, within bounds.

    Args:
        header_timeout_seconds: Longest that a head may take, from its first byte; the first from the connection on.
        max_connections: Most connections at once.
        options: uvicorn's own.
    """

    _malformed: ClassVar[MalformedLog] = MalformedLog()

    def __init__(self, *, header_timeout_seconds: float, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
        self._header_timeout = header_timeout_seconds
        self._max_connections = max_connections
        self._reading = IDLE
        self._front: Any = None  # the cycle whose answer is the next to leave; `self.cycle` is the newest
        self._broken: Any = None  # the cycle whose request was refused while its body was read
        self._last_word: tuple[int, str] = (_SILENT, "")
        self._head_bytes = 0  # of the request's head and trailers, as far as they are parsed
        self._unparsed_bytes = 0  # since the end of a head or the last byte of a body
        self._period_bytes = 0  # since the body was looked at last
        self._timer: asyncio.TimerHandle | None = None
        self._unread: UnreadWatch | None = None
        self._declines_upgrade = False

    @property
    def owes(self) -> bool:
        """Whether a request has begun here that has no answer yet."""
        return self._reading in (HEAD, BODY) or self._owes()

    def end_unfinished(self) -> None:
        """Tells whoever has not said all of a request that the server ends."""
        self._refuse(503, "the server is shutting down")

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Takes a connection, unless there are too many."""
        super().connection_made(gently(transport))
        self.flow: Flow = Flow(self.transport)
        if len(self.connections) > self._max_connections:
            self._reading = ENDED
            self._write_refusal(503, "too many connections")
            self._close()
        else:
            self._start_timer(self._header_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered, and forgets those that had not begun."""
        self._reading = ENDED
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._unread is not None:
            self._unread.stop()
        if self._owes():
            self._front.disconnected = True
            self._front.message_event.set()
        super().connection_lost(exc)
        self.pipeline.clear()
        self._front = self._broken = None  # each knows the connection: neither would be let go of
        self.cycle = cast("Cycle", None)

    def data_received(self, data: bytes) -> None:
        """Parses what came, and watches what is still to come."""
        if self._reading is ENDED or self.transport.is_closing():
            return  # thrown away
        self._unparsed_bytes += len(data)
        self._period_bytes += len(data)
        self._parse(data)
        if self._unparsed_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self._reading is BODY:
                self._watch_body()
            elif self._reading is HEAD or (self._reading is IDLE and self._unparsed_bytes):
                self._start_timer(self._header_timeout, self._head_is_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # what it returns is asyncio's
        """The client sends no more: what it asked is answered for a while, unless it has left altogether."""
        if self.transport.is_closing():
            return False
        self.flow.end()
        self._refuse(_SILENT)
        if self.transport.is_closing() or not self._owes():
            return False
        if not self.transport.can_write_eof():  # over TLS a connection ends on both sides
            return False
        self._start_timer(HALF_CLOSED_SECONDS, self._has_left)
        return True

    def pause_writing(self) -> None:
        """The client does not read: nothing more is read from it, and it has a bounded time to begin."""
        super().pause_writing()
        self.flow.pause_reading()
        self._watch_unread()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self.flow.resume_reading()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.stop()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for long enough."""
        if not self.transport.is_closing():
            self._close()

    # What the parser calls.

    def _parse(self, data: bytes) -> None:
        """Feeds the parser; past a head that asks for another protocol, which there is none of, it goes on as before.

        The parser ends a request with such a head, and would take its body for the next request.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._declines_upgrade or self._reading is ENDED or self.transport.is_closing():
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._declines_upgrade = False
            except httptools.HttpParserError:
                self._refuse(400, "Invalid HTTP request received.")
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
        if self._reading is not ENDED:
            self._reading = HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which is counted and dropped."""
        if self._reading is HEAD:
            super().on_header(name, value)
        elif self._reading is BODY:
            self._head_bytes += len(name) + len(value) + 4
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431)

    def on_headers_complete(self) -> None:
        """The head is there: from here on the body is watched."""
        if self._reading is ENDED:
            return
        if self.parser.should_upgrade():
            if any(name == b"upgrade" for name, _ in self.headers):
                self._declines_upgrade = True
            else:
                self._refuse(400, "CONNECT is for proxies")
            return
        self._stop_timer()
        self._head_bytes = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        elif (why := fault(self.parser.get_http_version(), self.headers)) is not None:
            self._refuse(400, why)
        elif len(self.pipeline) > MAX_PIPELINED:
            self.cycle.keep_alive = False  # the last answer says that it is the last
            self._refuse(_SILENT)
        else:
            self._begin()
            self._reading = BODY
            self._unparsed_bytes = 0

    def _begin(self) -> None:
        """A head within bounds: its request begins, or waits for the one before it."""
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        outcome = Outcome()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        self.scope["raw_path"] = self.root_path.encode("ascii") + url.path
        self.scope["query_string"] = url.query or b""
        self.scope["extensions"] = {OUTCOME: outcome}  # type: ignore[dict-item]  # uvicorn's type has its own only
        self.cycle: Cycle = Cycle(
            outcome=outcome,
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version != "1.0",  # which knows no such answer
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if self._owes():
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start(self.cycle)

    def _start(self, cycle: Cycle) -> None:
        self._front = cycle
        self._start_asgi_task(cycle, self.app)

    def on_body(self, body: bytes) -> None:
        """Hands a part of the body on, unless the request was refused."""
        if self._reading is BODY:
            self._unparsed_bytes = 0
            self._take(body)

    def _take(self, body: bytes) -> None:
        """A part of the body of a request that is being read."""
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole; the next head may begin."""
        if self._declines_upgrade or self._reading is ENDED:
            return
        self._stop_timer()
        self._reading = IDLE
        self._unparsed_bytes = 0
        self._complete()

    def _complete(self) -> None:
        """A request within bounds is there as a whole."""
        super().on_message_complete()

    # What a cycle calls.

    def on_response_complete(self) -> None:
        """An answer was written: the next request may begin, or the connection ends."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._reading = ENDED
            self._stop_timer()
            self._watch_unread()
            return
        self._unset_keepalive_if_required()
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            self._start(cast("Cycle", cycle))
            if cycle is self._broken:
                self._end()
        elif self._reading is ENDED:
            self._end()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        self.flow.resume_reading()

    # How a connection ends.

    def _owes(self) -> bool:
        """Whether a request is being answered."""
        return self._front is not None and not self._front.response_complete

    def _refuse(self, status: int, detail: str = "") -> None:
        """Reads no more, and ends the connection with a status, behind the answers that earlier requests wait for."""
        if self._reading is ENDED or self.transport.is_closing():
            return
        self._stop_timer()
        if status == 400:
            self._malformed.note(detail, "unknown" if self.client is None else self.client[0])
        if self._reading is BODY:
            if self.cycle.response_started:  # it has its answer: of this request there is nothing to say
                status = _SILENT
            else:
                self._broken = self.cycle
        self._reading = ENDED
        self._last_word = status, detail
        self.flow.discard()
        if not self._owes() or self._front is self._broken:
            self._end()

    def _end(self) -> None:
        """Every earlier request has its answer: says the last word, and ends the connection."""
        status, detail = self._last_word
        if self._broken is not None:
            self._broken.refused(status or CLIENT_LEFT)
        self._write_refusal(status, detail)
        self._close()

    def _close(self) -> None:
        """Ends the connection when the client has taken what was written (`closing`), or too little of it."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        if self._unread is None:
            self._unread = UnreadWatch(self.loop, self.transport, self.transport.abort)
        self._unread.start(PATIENCE_SECONDS)

    def _write_refusal(self, status: int, detail: str) -> None:
        if status == _SILENT:
            return
        phrase = HTTPStatus(status).phrase
        body = orjson.dumps({"type": "about:blank", "title": phrase, "status": status, "detail": detail or phrase})
        dates = b"".join([b"%s: %s\r\n" % header for header in self.server_state.default_headers])
        again = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %s\r\n%scontent-type: application/problem+json\r\ncontent-length: %d\r\n%s"
            b"connection: close\r\n\r\n%s" % (status, phrase.encode(), dates, len(body), again, body)
        )

    # Timers.

    def _watch_body(self) -> None:
        self._period_bytes = 0
        self._start_timer(_BODY_PERIOD_SECONDS, self._check_body)

    def _check_body(self) -> None:
        if self._was_paused() or self._period_bytes >= MIN_BODY_BYTES_PER_SECOND * _BODY_PERIOD_SECONDS:
            self._watch_body()
        else:
            self._refuse(408)

    def _head_is_late(self) -> None:
        if self._was_paused():
            self._start_timer(self._header_timeout, self._head_is_late)
        elif self._reading is IDLE and not self._unparsed_bytes:
            self._close()  # whoever said nothing is told nothing
        else:
            self._refuse(408)

    def _has_left(self) -> None:
        if self.flow.write_paused:  # it takes an answer; how fast is watched elsewhere
            self._start_timer(HALF_CLOSED_SECONDS, self._has_left)
        else:
            self.transport.abort()

    def _was_paused(self) -> bool:
        """Whether the client could not be heard, for a part of the time, because it was not read from."""
        return self.flow.read_paused or self.flow.resumed

    def _start_timer(self, seconds: float, action: Any) -> None:
        self._stop_timer()
        self.flow.resumed = False
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
