"""One HTTP connection, within bounds: how its requests are read, in which order they are answered, and how it ends.

Time and bytes to send a request are bounded, and the time to read answers. A request that arrives in one piece, as
nearly all do, starts no timer.

| what | answer |
|---|---|
| no HTTP, or a header block that two programs could read differently (`http.framing`) | 400, and the connection ends |
| more than `MAX_HEADER_BYTES` of request line, headers and trailers, or `MAX_FIELDS` | 431, and the connection ends |
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

Requests are read while earlier ones are answered (`is_answering`). One that arrives whole, with a header block that is
remembered (`fast_path.py`), is answered without the parser: the state stays IDLE.

Between two requests a connection keeps nothing of the last one: thousands of connections may be idle, and a request may
have 32 KiB of headers, which take a multiple of that once they are parsed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar, Final

import uvicorn

from lengthwise.connections.inflight import Hold, Inflight
from lengthwise.connections.listener import KeepAlive
from lengthwise.connections.unread import has_arrived
from lengthwise.http.asgi_request import AsgiRequest
from lengthwise.http.fast_path import FastPath
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.framing import BODY, BROKEN, CLOSED, ENDED, ENDING, HEAD, IDLE, UPGRADE, MalformedLog
from lengthwise.http.request_reader import MAX_HEADER_BYTES, MOST_PARTS, Head, RequestReader
from lengthwise.http.timed_connection import HALF_CLOSED_SECONDS, UNPARSED, UNREAD_SECONDS, TimedConnection
from lengthwise.protocols.body import CLIENT_LEFT

MIN_BODY_BYTES_PER_SECOND: Final = 1024
MAX_PIPELINED: Final = 64  # requests that may wait behind one that is being answered
BODY_PERIOD_SECONDS: Final = 10.0  # how often the bytes of a body are compared with that


class Connection(TimedConnection):
    """One connection, within bounds; with a `fast_path`, some of its requests do without ASGI."""

    _malformed: ClassVar[MalformedLog] = MalformedLog()

    def __init__(
        self,
        *,
        config: uvicorn.Config,
        server_state: uvicorn.server.ServerState,
        app_state: dict[str, Any],
        header_timeout_seconds: float,
        max_connections: int,
        keep_alive: KeepAlive,
        fast_path: FastPath | None = None,
    ) -> None:
        super().__init__(server_state, Inflight(0) if fast_path is None else fast_path.inflight)
        self.state = IDLE  # what is read next
        self.newest: Any = None  # the request that was read last, until it has its answer
        self.bytes_since_progress = 0  # fed to the parser since a header block ended or a part of a body came
        self.keep_alive_seconds = config.timeout_keep_alive
        self._app = config.loaded_app
        self._app_state = app_state
        self._root_path = config.root_path
        self._connections: set[Any] = server_state.connections
        self._header_timeout = header_timeout_seconds
        self._max_connections = max_connections
        self._keep_alive = keep_alive
        self._fast_path = fast_path
        self._fast_request: FastRequest | None = None  # the fast request that this call of data_received began
        self._reader = RequestReader(self)
        self._answering: AsgiRequest | FastRequest | None = None  # the request whose answer is written next
        self._answered_at = 0.0
        self._waiting: deque[AsgiRequest] = deque()  # those behind it
        self._pipelined = Hold(self._unwritten.inflight)  # memory of the heads and bodies of those
        self._refusal: tuple[int, str] | None = None  # ends the connection: status and detail; None: ends without one
        self._period_bytes = 0  # since the bytes of the body were compared last
        self._parts = 0  # of bodies, parsed in this turn of the event loop
        self._rest = b""  # was read, and is parsed in the next turns of the event loop
        self._ended_early = False  # the client's EOF came while _rest was still unparsed

    @property
    def owes(self) -> bool:
        """Whether a request has begun and has no answer yet."""
        return self.state in (HEAD, UPGRADE, BODY) or self.is_answering()

    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None and not self._answering.response_complete

    def give_way(self) -> bool:
        """See `IdleConnection.give_way`."""
        if self.state is not IDLE or self.is_answering() or self.transport.is_closing() or has_arrived(self.transport):
            return False
        self._connections.discard(self)  # its place is free from now on
        self.transport.abort()
        return True

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a socket's
        """Accepts a connection, unless there are too many."""
        self._connections.add(self)
        self._set_transport(transport)
        if len(self._connections) > self._max_connections and not self._keep_alive.make_room(self.loop.time()):
            self.state = CLOSED
            self._write_refusal(503, "too many connections")
            self._close()
        else:
            self._start_timer(self._header_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered, and drops those that had not begun."""
        self._connections.discard(self)
        self.state = CLOSED
        self._keep_alive.pop(self, None)
        self._stop_timer()
        self._stop_keep_alive_timer()
        if self._unread is not None:
            self._unread.stop()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.client_left()
        self._waiting.clear()
        self._answering = self.newest = self._fast_request = None  # each refers to the connection
        self._reader.close()
        self._rest = b""
        self.flow.end()
        self.flow.resume_writing()
        self._unwritten.close()
        self._pipelined.close()

    def data_received(self, data: bytes) -> None:
        """Answers a request whose header block is known; has any other data parsed, and remembers a new one."""
        between = self.state is IDLE
        if between and self._is_known(data):
            return
        if self.state in ENDED or self.transport.is_closing():
            return  # it is dropped
        self._period_bytes += len(data)
        if self._rest:
            self._rest += data
            return
        self._parse_in_turns(data)
        request = self._fast_request
        if self._fast_path is not None and between and self.state is IDLE and request is not None and request.admitted:
            self._fast_path.remember(data, request)
        self._fast_request = None

    def _is_known(self, data: bytes) -> bool:
        """Whether the data are a whole request with a known header block; if so, answers it without the parser."""
        if self._fast_path is None or self.is_answering() or self.transport.is_closing():
            return False
        known = self._fast_path.known(data)
        if known is None:
            return False
        self._keep_alive.pop(self, None)
        if self._timer is not None:
            self._stop_timer()
        self.bytes_since_progress = 0
        endpoint, headers, scope, body = known
        self.newest = self._answering = request = FastRequest(self, endpoint, headers, scope)
        request.answer(body, known=True)
        return True

    def _parse_in_turns(self, data: bytes) -> None:
        """Parses data, a body in chunks bit by bit, and limits the time for what is still to come."""
        self._keep_alive.pop(self, None)
        self._stop_keep_alive_timer()
        self._fast_request = None
        self._parts = 0
        size = self._reader.piece_bytes(data)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            self.bytes_since_progress += len(part)
            self._reader.feed(part)
            if self.state in ENDED or self.bytes_since_progress > MAX_HEADER_BYTES:
                break
            if self._parts > MOST_PARTS and self.state is BODY and self._reader.in_chunks:
                self._rest = data[start + size :]
                break
        self._limit_time()
        if self._rest and self.state not in ENDED:
            self.flow.pause_reading(UNPARSED)
            self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        """Parses, in a new turn of the event loop, data that was left over by the last one."""
        data, self._rest = self._rest, b""
        if self.state in ENDED or self.transport.is_closing():
            return
        self.flow.resume_reading(UNPARSED)
        self._parse_in_turns(data)
        if self._ended_early and not self._rest and not self.eof_received():
            self.transport.close()

    def _limit_time(self) -> None:
        """Refuses a header block that is too large; starts the timer of a header block or body that is not complete."""
        if self.bytes_since_progress > MAX_HEADER_BYTES:
            self.refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self.state is BODY:
                self._watch_body()
            elif self.state is HEAD or (self.state is IDLE and self.bytes_since_progress):
                self._start_timer(self._header_timeout, self._head_is_late)

    def eof_received(self) -> bool:
        """Handles the client's EOF: requests so far are answered within a bounded time, unless the client is gone."""
        if self.transport.is_closing():
            return False
        if self._rest and self.transport.can_write_eof():
            self._ended_early = True
            return True
        self.flow.end()
        self.refuse(None)
        if self.transport.is_closing() or not self.is_answering() or not self.transport.can_write_eof():
            return False  # over TLS a connection ends on both sides
        self._abort_later(HALF_CLOSED_SECONDS, lambda: self.flow.write_paused)
        return True

    # What the reader of requests reports.

    def request_begins(self, head: Head) -> None:
        """Starts the request of a complete header block, or queues it if an earlier one is being answered.

        Only the first request in a piece of data may skip ASGI: refusing hundreds at once would block the event loop.
        Through ASGI each has its own turn.
        """
        self._stop_timer()
        if len(self._waiting) > MAX_PIPELINED:
            self.newest.keep_alive = False  # the last answer says so
            self.refuse(None)
            return
        path = None if self._fast_request is not None or self.is_answering() else self._fast_path
        fast = None if path is None else path.begin(self, head)
        if fast is not None:
            self.newest = self._answering = self._fast_request = fast
        else:
            self.newest = request = AsgiRequest(
                self, head, self._root_path, {"state": self._app_state.copy(), **self._addresses}
            )
            if self.is_answering():
                self.flow.pause_reading()
                self._waiting.append(request)
                self._pipelined.holds(self._pipelined.size + head.size)
            else:
                self._start(request)
        self.state = BODY
        self.bytes_since_progress = 0

    def body_part(self, body: bytes) -> None:
        """A part of the body of the newest request is here."""
        self.bytes_since_progress = 0
        self._parts += 1
        self.newest.body_part(body)
        if self._waiting:
            self._pipelined.holds(self._pipelined.size + len(body))

    def body_complete(self) -> None:
        """The body of the newest request is complete."""
        self._stop_timer()
        self.bytes_since_progress = 0
        self.newest.body_complete()
        if not self.is_answering() and not self._waiting:  # it was answered before its end
            self.newest = self._answering = None

    def _start(self, request: AsgiRequest) -> None:
        self._answering = request
        task = self.loop.create_task(request.run(self._app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    # What a request calls.

    def answered(self, response: bytes, *, keep_alive: bool) -> bool:
        """Writes the whole response of a fast request; whether the transport accepted it."""
        flow = self.flow
        if self.transport.is_closing() or (flow.read_paused and flow.lost()):
            return False
        self.transport.write(response)
        if self.transport.is_closing():  # the client has gone
            return False
        if flow.write_paused:
            self._unwritten.holds(self.transport.get_write_buffer_size())
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def on_response_complete(self) -> None:
        """Starts the next request, or ends the connection. A keep-alive timer that runs already is not restarted."""
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self.transport.is_closing():
            self.state = CLOSED
            self._stop_timer()
            self._watch_unread()
            return
        if self._waiting:
            if len(self._waiting) == 1:  # no request waits behind this one, which counts its own body
                self._pipelined.close()
            request = self._waiting.popleft()
            self._start(request)
            if self.state is BROKEN and request is self.newest:
                self._end()
        elif self.state in ENDED:
            self._end()
        else:
            if self._keep_alive_timer is None:
                self._keep_alive_timer = self.loop.call_later(self.keep_alive_seconds, self.keep_alive_is_over)
            if self.state is IDLE and not self.bytes_since_progress:  # else the beginning of the next request is here
                self._keep_alive[self] = self._answered_at
            if self.state is not BODY:
                self.newest = self._answering = None
        if self.flow.read_paused:
            self.flow.resume_reading()

    # How the connection ends.

    def refuse(self, status: int | None, detail: str = "") -> None:
        """Reads no more. Earlier requests are answered; if there is a `status`, a refusal is written last."""
        if self.state in ENDED or self.transport.is_closing():
            return
        self._stop_timer()
        if status == 400:
            self._malformed.note(detail, self.client[0] if self.client else "unknown")
        broken = self.state is BODY
        if broken and self.newest.response_started:  # it was answered before its end: there is nothing to add
            broken, status = False, None
        self.state = BROKEN if broken else ENDING
        self._refusal = None if status is None else (status, detail)
        self.flow.discard()
        if not self.is_answering() or (broken and self._answering is self.newest):
            self._end()

    def _end(self) -> None:
        """Every earlier request has its answer: writes the refusal, and ends the connection."""
        if self.state is BROKEN:
            self.newest.refused(CLIENT_LEFT if self._refusal is None else self._refusal[0])
        self.state = CLOSED
        if self._refusal is not None:
            self._write_refusal(*self._refusal)
        self._close()

    # What is late. After a stop of the process this may be called before data are read that arrived meanwhile.

    def keep_alive_is_over(self) -> None:
        """Closes a connection that was idle for `keep_alive_seconds`; waits on if there was an answer meanwhile."""
        self._keep_alive_timer = None
        if self.state is CLOSED or self.is_answering() or self.transport.is_closing():
            return  # it is lost, or the answer will set a timer
        left = self._answered_at + self.keep_alive_seconds - self.loop.time()
        if left <= 0 and has_arrived(self.transport):
            left = UNREAD_SECONDS
        if left > 0:
            self._keep_alive_timer = self.loop.call_later(left, self.keep_alive_is_over)
        else:
            self._close()

    def _watch_body(self) -> None:
        self._period_bytes = 0
        self._start_timer(BODY_PERIOD_SECONDS, self.check_body)

    def check_body(self) -> None:
        """Refuses a body that arrives too slowly, at the end of a period."""
        if self._was_paused() or self._period_bytes >= MIN_BODY_BYTES_PER_SECOND * BODY_PERIOD_SECONDS:
            self._watch_body()
        elif has_arrived(self.transport):
            self._start_timer(UNREAD_SECONDS, self.check_body)
        else:
            self.refuse(408)

    def _head_is_late(self) -> None:
        """Ends the connection if a header block did not arrive in time, unless reading was paused."""
        if self._was_paused():
            self._start_timer(self._header_timeout, self._head_is_late)
        elif has_arrived(self.transport):
            self._start_timer(UNREAD_SECONDS, self._head_is_late)
        elif self.state is IDLE and not self.bytes_since_progress:
            self.transport.abort()  # nothing was sent, so there is nothing to answer, and nothing to wait for
        else:
            self.refuse(408)
