"""One HTTP connection, within bounds: how its requests are read, in which order they are answered, and how it ends.

A client gets a bounded time to send a request, a bounded number of bytes for its header block, and a bounded time to
read its answers. The bounds cost nothing for a request that arrives in one piece, as nearly all do: a timer runs only
while a header block or a body is incomplete, or while bytes stay unread.

| what | answer |
|---|---|
| no HTTP, or a header block that two programs could read differently (`http.framing`) | 400, and the connection ends |
| more than `MAX_HEADER_BYTES` of request line, headers and trailers | 431, and the connection ends |
| a header block that is not complete in `header_timeout_seconds` | 408, and the connection ends |
| a body of which fewer than `MIN_BODY_BYTES_PER_SECOND` arrive | 408, and the connection ends |
| more than `max_connections` connections, of which none has been idle for long | 503, and the connection ends |
| no request for `keep_alive_seconds`, or for a while when another connection needs the place | the connection ends |
| more than `MAX_PIPELINED` requests behind one that is being answered | those are answered, and the connection ends |
| answers that are not read (`lengthwise.connections.unread`) | the connection is aborted |

Answers keep the order of the requests, and so do refusals: nothing is written in the place of an earlier answer. After
a refusal nothing more is parsed, and what still arrives is dropped, so that the last answer is not lost to a reset
(`connections.closing`). Trailers are never headers: they are counted and dropped. A client that does not read its
answers is not read from either. One that asks for another protocol (`upgrade`) is answered in this one. One that sends
no more, but may still read (`shutdown(SHUT_WR)`), has `HALF_CLOSED_SECONDS` to be answered, because the server cannot
distinguish it from one that has left; over TLS it counts as gone at once.

What is read next is the connection's `State`:

| state | event | next state |
|---|---|---|
| IDLE | the first byte of a request | HEAD |
| HEAD | the header block is complete and within bounds | BODY |
| HEAD | the header block is complete and asks for another protocol | UPGRADE |
| UPGRADE | the parser is given the header block again, without that header | HEAD |
| BODY | the body is complete | IDLE |
| IDLE, HEAD, UPGRADE, BODY | a bound is exceeded, or the client sends no more | ENDING |
| BODY | the same, before the answer to this request has begun | BROKEN |
| ENDING, BROKEN | every earlier request has its answer | CLOSED |
| any | an answer ended the connection, it was lost, or there are too many | CLOSED |

Requests are read while earlier ones are answered, so whether one is being answered is another question
(`is_answering`). Of the states, IDLE, HEAD, UPGRADE and BODY read, and ENDING, BROKEN and CLOSED (`ENDED`) do not.

Private parts of uvicorn (0.54) that are used here, besides those that `http.cycle` names: the attributes `cycle`,
`pipeline`, `flow`, `scope`, `headers`, `url`, `parser` and `timeout_keep_alive_task` of its `HttpToolsProtocol`,
`_start_asgi_task` and `_unset_keepalive_if_required`.
"""

from __future__ import annotations

import asyncio
import enum
import urllib.parse
from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lengthwise.connections.closing import LINGER_SECONDS, gently
from lengthwise.connections.kept_alive import KeptAlive
from lengthwise.connections.unread import PATIENCE_SECONDS, UnreadWatch, has_arrived, unread_bytes
from lengthwise.http.cycle import Cycle, Flow
from lengthwise.http.framing import MalformedLog, fault
from lengthwise.http.responses import DefaultHeaderLines, response
from lengthwise.protocols import problems
from lengthwise.protocols.body import CLIENT_LEFT, DELIVERY, Delivery

MAX_HEADER_BYTES: Final = 32_768
MIN_BODY_BYTES_PER_SECOND: Final = 1024
PIECE_BYTES: Final = 2048
"""Most bytes that are parsed at once."""
MOST_PARTS: Final = 256
"""Most parts of a body in chunks that are parsed in one turn of the event loop, and those of one more piece: each is a
call of Python, and a read of 256 KiB may have 43,000 of them."""
MAX_PIPELINED: Final = 64
"""Requests that may wait behind one that is being answered."""
_UNREAD_SECONDS: Final = 0.1
"""After which time a connection that seemed idle, and has bytes to read, is looked at again."""
HALF_CLOSED_SECONDS: Final = 2.0
BODY_PERIOD_SECONDS: Final = 10.0
"""How often the bytes of a body are compared with `MIN_BODY_BYTES_PER_SECOND`."""


class State(enum.Enum):
    """What of a request is read next; the module has the table of transitions."""

    IDLE = "its first byte"
    HEAD = "the rest of its header block"
    UPGRADE = "the same header block again, without the header that asks for another protocol"
    BODY = "the rest of its body, and trailers"
    ENDING = "nothing: the connection ends behind the answers to earlier requests"
    BROKEN = "nothing: the same, and the refusal answers the last request, whose body was being read"
    CLOSED = "nothing: the connection has ended"


# Names of the module: the member of an enum takes longer to look up than to compare.
IDLE, HEAD, UPGRADE, BODY = State.IDLE, State.HEAD, State.UPGRADE, State.BODY
ENDING, BROKEN, CLOSED = State.ENDING, State.BROKEN, State.CLOSED
ENDED: Final = (ENDING, BROKEN, CLOSED)


class BoundedConnection(HttpToolsProtocol):
    """One connection, within bounds.

    Args:
        header_timeout_seconds: How long a header block may take from its first byte; the first one from the connection
            on.
        max_connections: Connections that there may be at once.
        kept_alive: The idle ones of them.
        options: The arguments of uvicorn's class.

    Attributes:
        state: What is read next.
        unparsed_bytes: Received since the end of a header block or the last byte of a body.
    """

    _malformed: ClassVar[MalformedLog] = MalformedLog()
    _default_lines: ClassVar[DefaultHeaderLines] = DefaultHeaderLines()

    def __init__(
        self, *, header_timeout_seconds: float, max_connections: int, kept_alive: KeptAlive, **options: Any
    ) -> None:
        super().__init__(**options)
        self.state = IDLE
        self._header_timeout = header_timeout_seconds
        self._max_connections = max_connections
        self._kept_alive = kept_alive
        # Each is a `Cycle` or a `FastRequest`. uvicorn's `cycle` is the newest one.
        self._answering: Any = None  # the request whose answer is written next
        self._refusal: tuple[int, str] | None = None  # ends the connection: status and detail; None: ends without one
        self._head_bytes = 0  # of the request's header block and trailers, as far as they are parsed
        self.unparsed_bytes = 0
        self._period_bytes = 0  # since the bytes of the body were compared last
        self._timer: asyncio.TimerHandle | None = None
        self._unread: UnreadWatch | None = None
        self._parts = 0  # of bodies, parsed in this turn of the event loop
        self._rest = b""  # was read, and is parsed in the next turns of the event loop
        self._ended_early = False  # the client sends nothing behind it

    @property
    def default_headers(self) -> bytes:
        """The header lines of every response: the date."""
        return self._default_lines.of(self.server_state.default_headers)

    @property
    def owes(self) -> bool:
        """Whether a request has begun and has no answer yet."""
        return self.state in (HEAD, UPGRADE, BODY) or self.is_answering()

    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None and not self._answering.response_complete

    def end_unfinished(self) -> None:
        """Tells a client that has not sent its whole request that the server ends."""
        self._refuse(503, "the server is shutting down")

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Accepts a connection, unless there are too many."""
        super().connection_made(gently(transport))
        self.flow: Flow = Flow(self.transport)
        full = len(self.connections) > self._max_connections
        if full and not self._kept_alive.make_room(self.loop.time()):
            self.state = CLOSED
            self._write_refusal(503, "too many connections")
            self._close()
        else:
            self._start_timer(self._header_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered, and drops those that had not begun."""
        self.state = CLOSED
        self._rest = b""
        self._kept_alive.remove(self)
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._unread is not None:
            self._unread.stop()
        if self.is_answering():
            self._answering.client_left()
        self.pipeline.clear()
        # Each refers to the connection. And uvicorn would tell the request once more.
        self._answering = None
        self.cycle = cast("Cycle", None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what arrived, and limits the time for what is still to come."""
        if self.state in ENDED or self.transport.is_closing():
            return  # it is dropped
        self._period_bytes += len(data)
        if self._rest:
            self._rest += data
        else:
            self._parse_in_turns(data)

    def _parse_in_turns(self, data: bytes) -> None:
        """Parses data, a body in chunks bit by bit, and limits the time for what is still to come."""
        self._kept_alive.remove(self)
        self._parts = 0
        for start in range(0, len(data), PIECE_BYTES):
            part = data[start : start + PIECE_BYTES]
            self.unparsed_bytes += len(part)
            self.parse(part)
            if self.state in ENDED or self.unparsed_bytes > MAX_HEADER_BYTES:
                break
            if self._parts > MOST_PARTS and self.state is BODY and self._in_chunks():
                self._rest = data[start + PIECE_BYTES :]
                break
        self._limit_time()
        if self._rest and self.state not in ENDED:
            self.flow.fall_behind()
            self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        data, self._rest = self._rest, b""
        if self.state in ENDED or self.transport.is_closing():
            return
        self.flow.catch_up()
        self._parse_in_turns(data)
        if self._ended_early and not self._rest and not self.eof_received():
            self.transport.close()

    def _in_chunks(self) -> bool:
        """Whether the body that is being read comes in chunks."""
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    def _limit_time(self) -> None:
        if self.unparsed_bytes > MAX_HEADER_BYTES:
            self._refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self.state is BODY:
                self._watch_body()
            elif self.state is HEAD or (self.state is IDLE and self.unparsed_bytes):
                self._start_timer(self._header_timeout, self._head_is_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # what it returns is asyncio's
        """The client sends no more: it has some time to be answered, unless it has left altogether."""
        if self.transport.is_closing():
            return False
        if self._rest and self.transport.can_write_eof():
            self._ended_early = True
            return True
        self.flow.end()
        self._refuse(None)
        if self.transport.is_closing() or not self.is_answering():
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
        """No request came for long enough.

        After a stop of the process this may be called before a request is read that arrived meanwhile: then it is read.
        """
        if has_arrived(self.transport):
            self.timeout_keep_alive_task = self.loop.call_later(_UNREAD_SECONDS, self.timeout_keep_alive_handler)
        elif not self.transport.is_closing():
            self._close()

    # What the listener asks for.

    def give_way(self) -> bool:
        """See `KeptConnection.give_way`."""
        if self.state is not IDLE or self.is_answering() or self.transport.is_closing() or has_arrived(self.transport):
            return False
        self.connections.discard(cast("Any", self))  # its place is free from now on
        self.transport.abort()
        return True

    def _is_kept_alive(self) -> None:
        """Counts it among the idle connections, unless the beginning of the next request is here."""
        if self.state is IDLE and not self.unparsed_bytes:
            self._kept_alive.add(self, self.loop.time())

    # What the parser calls.

    def parse(self, data: bytes) -> None:
        """Gives data to the parser, and the header block once more where it asked for another protocol.

        The parser ends a request with such a header block, and would read its body as the next request.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.state is not UPGRADE or self.transport.is_closing():
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.state = HEAD
            except httptools.HttpParserError:
                self._refuse(400, "Invalid HTTP request received.")
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """The header block that was parsed last, without the header that asks for another protocol."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        if self.state not in ENDED:
            self.state = HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which is counted and dropped."""
        if self.state is HEAD:
            super().on_header(name, value)
        elif self.state is BODY:
            self._head_bytes += len(name) + len(value) + 4
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431)

    def on_headers_complete(self) -> None:
        """The header block is complete: the request begins, unless it is refused."""
        if self.state in ENDED:
            return
        if self.parser.should_upgrade():
            if any(name == b"upgrade" for name, _ in self.headers):
                self.state = UPGRADE
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
            self._refuse(None)
        else:
            self._begin()
            self.state = BODY
            self.unparsed_bytes = 0

    def on_body(self, body: bytes) -> None:
        """A part of the body is here."""
        if self.state is BODY:
            self.unparsed_bytes = 0
            self._parts += 1
            self._body_part(body)

    def on_message_complete(self) -> None:
        """The body is complete; the next header block may begin."""
        if self.state is BODY:
            self._stop_timer()
            self.state = IDLE
            self.unparsed_bytes = 0
            self._body_complete()

    # A request within bounds, on its way to the application.

    def _begin(self) -> None:
        """Starts the request, or queues it behind the one before it."""
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        delivery = Delivery()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        self.scope["raw_path"] = self.root_path.encode("ascii") + url.path
        self.scope["query_string"] = url.query or b""
        self.scope["extensions"] = {DELIVERY: delivery}  # type: ignore[dict-item]  # uvicorn's type has its own only
        cycle = Cycle(
            delivery=delivery,
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version != "1.0",  # which has no such answer
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle: Any = cycle
        if self.is_answering():
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        else:
            self._start(cycle)

    def _start(self, cycle: Cycle) -> None:
        self._answering = cycle
        self._start_asgi_task(cycle, self.app)

    def _body_part(self, body: bytes) -> None:
        """Passes a part of the body to the newest request."""
        super().on_body(body)

    def _body_complete(self) -> None:
        """Tells the newest request that its body is complete."""
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Called when an answer was written: starts the next request, or ends the connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.state = CLOSED
            self._stop_timer()
            self._watch_unread()
            return
        self._unset_keepalive_if_required()
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            self._start(cast("Cycle", cycle))
            if self.state is BROKEN and cycle is self.cycle:
                self._end()
        elif self.state in ENDED:
            self._end()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._is_kept_alive()
        self.flow.resume_reading()

    # How the connection ends.

    def _refuse(self, status: int | None, detail: str = "") -> None:
        """Reads no more, and ends the connection behind the answers to earlier requests.

        Args:
            status: The status of the refusal that is written then; None for no refusal.
            detail: A sentence for the client; without one, the status's own phrase.
        """
        if self.state in ENDED or self.transport.is_closing():
            return
        self._stop_timer()
        if status == 400:
            self._malformed.note(detail, "unknown" if self.client is None else self.client[0])
        broken = self.state is BODY
        if broken and self.cycle.response_started:  # it was answered before its end: there is nothing to add
            broken, status = False, None
        self.state = BROKEN if broken else ENDING
        self._refusal = None if status is None else (status, detail)
        self.flow.discard()
        if not self.is_answering() or (broken and self._answering is self.cycle):
            self._end()

    def _end(self) -> None:
        """Every earlier request has its answer: writes the refusal, and ends the connection."""
        if self.state is BROKEN:
            self.cycle.refused(CLIENT_LEFT if self._refusal is None else self._refusal[0])
        self.state = CLOSED
        if self._refusal is not None:
            self._write_refusal(*self._refusal)
        self._close()

    def _close(self) -> None:
        """Ends the connection when the client has read what was written (`closing`), or reads too slowly."""
        self.transport.close()
        self._watch_unread()

    def _watch_unread(self) -> None:
        if self._unread is None:
            self._unread = UnreadWatch(self.loop, self.transport, self.transport.abort)
        self._unread.start(PATIENCE_SECONDS)
        if self.transport.is_closing() and not self.transport.can_write_eof():
            self._start_timer(LINGER_SECONDS, self._has_not_parted)

    def _has_not_parted(self) -> None:
        """Over TLS, a client that has read everything has some time to end its own side (see `closing`)."""
        if unread_bytes(self.transport):
            self._start_timer(LINGER_SECONDS, self._has_not_parted)
        else:
            self.transport.abort()

    def _write_refusal(self, status: int, detail: str) -> None:
        status, body, headers = problems.last_refusal(status, detail)
        self.transport.write(response(status, self.default_headers, headers, body))

    # Timers: one runs at a time.

    def _watch_body(self) -> None:
        self._period_bytes = 0
        self._start_timer(BODY_PERIOD_SECONDS, self.check_body)

    def check_body(self) -> None:
        """Refuses a body that arrives too slowly, at the end of a period."""
        if self._was_paused() or self._period_bytes >= MIN_BODY_BYTES_PER_SECOND * BODY_PERIOD_SECONDS:
            self._watch_body()
        elif has_arrived(self.transport):  # as in `timeout_keep_alive_handler`
            self._start_timer(_UNREAD_SECONDS, self.check_body)
        else:
            self._refuse(408)

    def _head_is_late(self) -> None:
        if self._was_paused():
            self._start_timer(self._header_timeout, self._head_is_late)
        elif has_arrived(self.transport):  # as in `timeout_keep_alive_handler`
            self._start_timer(_UNREAD_SECONDS, self._head_is_late)
        elif self.state is IDLE and not self.unparsed_bytes:
            self.transport.abort()  # nothing was sent, so there is nothing to answer, and nothing to wait for
        else:
            self._refuse(408)

    def _has_left(self) -> None:
        if self.flow.write_paused:  # it reads an answer; `UnreadWatch` says whether fast enough
            self._start_timer(HALF_CLOSED_SECONDS, self._has_left)
        else:
            self.transport.abort()

    def _was_paused(self) -> bool:
        """Whether the connection was not read from for a part of the time, so that the client could not send."""
        return self.flow.read_paused or self.flow.resumed

    def _start_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._stop_timer()
        self.flow.resumed = False
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
