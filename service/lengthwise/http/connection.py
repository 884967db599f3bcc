"""One HTTP connection, within bounds: how its requests are read, in which order they are answered, and how it ends.

Time and bytes to send a request are bounded, and the time to read answers. A request that arrives in one piece, as
nearly all do, starts no timer.

| what | answer |
|---|---|
| no HTTP, or a header block that two programs could read differently (`http.framing`) | 400, and the connection ends |
| more `header_bytes` of request line, headers and trailers, or `fields`, than allowed | 431, and the connection ends |
| a header block that is not complete in `header_seconds` | 408, and the connection ends |
| a body of which fewer than `MIN_BODY_BYTES_PER_SECOND` arrive | 408, and the connection ends |
| more than `max_connections` connections, of which none has been idle for long | 503, and the connection ends |
| no request for `keep_alive_seconds`, or for a while when another connection needs the slot | the connection ends |
| more than `MAX_PIPELINED` requests wait while one is answered | these are answered, and the connection ends |
| answers that are not read (`lengthwise.connections.unread`) | the connection is aborted |

Answers keep the order of the requests, and so do refusals: a refusal waits until the earlier requests have their
answers. After a refusal nothing more is parsed, and what still arrives is dropped, so that the last answer is not lost
to a reset (`connections.closing`). Trailers are never headers: they are counted and dropped. A client that does not
read its answers is not read from either. A request for another protocol (`upgrade`) is answered over HTTP. A client
that sends no more, but may still read (`shutdown(SHUT_WR)`), is answered for at most `HALF_CLOSED_SECONDS`, because the
server cannot distinguish it from a client that has left; over TLS it counts as gone at once.

What is read next is the connection's `State` (`http.states` has the table), and its limits are `RequestLimits`.
Requests are read while earlier ones are answered (`is_answering`). A request that arrives whole, with a header block
that is remembered (`fast_path.py`), is answered without the parser: the state stays IDLE. A *fast request* is answered
without ASGI (`FastRequest`), whether the parser read it or not.

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
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.connections.unread import has_arrived
from lengthwise.http.asgi_request import AsgiRequest
from lengthwise.http.fast_path import FastPath
from lengthwise.http.fast_request import FastRequest
from lengthwise.http.framing import MalformedLog
from lengthwise.http.request_reader import MOST_PARTS, Head, RequestReader
from lengthwise.http.states import BODY, BROKEN, CLOSED, ENDED, HEAD, IDLE, UPGRADE, Event
from lengthwise.http.timed_connection import HALF_CLOSED_SECONDS, UNPARSED, UNREAD_SECONDS, TimedConnection
from lengthwise.protocols.body import CLIENT_LEFT

MIN_BODY_BYTES_PER_SECOND: Final = 1024
MAX_PIPELINED: Final = 64  # requests that may wait behind one that is being answered
BODY_PERIOD_SECONDS: Final = 10.0  # how often the rate of a body is compared with `MIN_BODY_BYTES_PER_SECOND`


class Connection(TimedConnection):
    """One HTTP connection, within bounds; a `fast_path` lets some of its requests be answered without ASGI."""

    _malformed: ClassVar[MalformedLog] = MalformedLog()

    def __init__(
        self,
        *,
        config: uvicorn.Config,
        server_state: uvicorn.server.ServerState,
        app_state: dict[str, Any],
        limits: RequestLimits,
        max_connections: int,
        keep_alive: KeepAlive,
        fast_path: FastPath | None = None,
    ) -> None:
        super().__init__(server_state, Inflight(0) if fast_path is None else fast_path.inflight)
        self.newest: Any = None  # the request that was read last, until it has its answer
        self.bytes_since_progress = 0  # bytes parsed since a header block ended or a part of a body came
        self.keep_alive_seconds = config.timeout_keep_alive
        self._app = config.loaded_app
        self._app_state = app_state
        self._root_path = config.root_path
        self._connections: set[Any] = server_state.connections
        self._limits = limits
        self._max_connections = max_connections
        self._keep_alive = keep_alive
        self._fast_path = fast_path
        self._fast_request: FastRequest | None = None  # the fast request that the data just received began
        self._reader = RequestReader(self, limits)
        self._answering: AsgiRequest | FastRequest | None = None  # the request whose answer is written next
        self._answered_at = 0.0  # when the last answer was written, on the event loop's clock
        self._waiting: deque[AsgiRequest] = deque()  # requests that begin after it, in order
        self._pipelined = Hold(self._unwritten.inflight)  # memory of the heads and bodies of the waiting requests
        self._refusal: tuple[int, str] | None = None  # status and detail of the refusal to write last, if there is one
        self._period_bytes = 0  # bytes received in this period of `BODY_PERIOD_SECONDS`
        self._parts = 0  # parts of bodies that were parsed in this turn of the event loop
        self._rest = b""  # data that were received, and are parsed in the next turns of the event loop
        self._ended_early = False  # the client's EOF came while _rest was still unparsed

    @property
    def owes(self) -> bool:
        """Whether a request has begun and has no answer yet."""
        return self.state in (HEAD, UPGRADE, BODY) or self.is_answering()

    def is_answering(self) -> bool:
        """Whether a request has begun to be answered, and its answer is not complete."""
        return self._answering is not None and not self._answering.response_complete

    def give_way(self) -> bool:
        """Ends the connection at once to free its slot; returns False, and does nothing, if it is not idle.

        It is not idle either if bytes of a next request have arrived that were not read yet.
        """
        if self.state is not IDLE or self.is_answering() or self.transport.is_closing() or has_arrived(self.transport):
            return False
        self._connections.discard(self)  # its slot is free from now on, before the transport reports the end
        self.transport.abort()
        return True

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a socket's
        """Accepts a connection.

        If there are too many, the longest idle one is ended for it; without one it gets 503 and ends.
        """
        self._connections.add(self)
        self._set_transport(transport)
        if len(self._connections) > self._max_connections and not self._keep_alive.make_room(self.loop.time()):
            self.enter(Event.ENDED)
            self._write_refusal(503, "too many connections")
            self._close()
        else:
            self._start_timer(self._limits.header_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered, drops those that wait, and releases the memory of all."""
        self._connections.discard(self)
        self.enter(Event.ENDED)
        self._keep_alive.pop(self, None)
        self._stop_timers()
        if self._unread is not None:
            self._unread.stop()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.client_left()
        self._waiting.clear()
        self._answering = self.newest = self._fast_request = None  # break the reference cycles with the connection
        self._reader.close()
        self._rest = b""
        self.flow.end()
        self.flow.resume_writing()
        self._unwritten.close()
        self._pipelined.close()

    def data_received(self, data: bytes) -> None:
        """Answers a request whose header block is remembered; parses any other data.

        A fast request that was parsed whole has its header block remembered for the next one.
        """
        is_between_requests = self.state is IDLE
        if is_between_requests and self._answer_known(data):
            return
        if self.state in ENDED or self.transport.is_closing():
            return  # it is dropped
        self._period_bytes += len(data)
        if self._rest:
            self._rest += data
            return
        self._parse_for_a_turn(data)
        request = self._fast_request
        # The data are exactly one request: the state was IDLE before and is IDLE after them.
        is_one_request = is_between_requests and self.state is IDLE
        if self._fast_path is not None and is_one_request and request is not None and request.admitted:
            self._fast_path.remember(data, request)
        self._fast_request = None

    def _answer_known(self, data: bytes) -> bool:
        """Answers a whole request with a remembered header block, without the parser; returns False for other data."""
        if self._fast_path is None or self.is_answering() or self.transport.is_closing():
            return False
        request_parts = self._fast_path.known(data)
        if request_parts is None:
            return False
        self._keep_alive.pop(self, None)
        if self._timer is not None:
            self._stop_timer()
        self.bytes_since_progress = 0
        endpoint, headers, scope, body = request_parts
        self.newest = self._answering = request = FastRequest(self, endpoint, headers, scope)
        request.answer(body, known=True)
        return True

    def _parse_for_a_turn(self, data: bytes) -> None:
        """Parses received data for one turn of the event loop, and limits the time for what has to follow them.

        The reader gets them piece by piece. While it parses a piece, it calls `enter`, `request_begins` and
        `body_part`, which change `state`, `_fast_request` and `_parts`. After a piece, the turn is over if

        - the connection ends, or its header block is too large;
        - a body in chunks had more than `MOST_PARTS` parts in this turn: then `_parse_rest` parses the data that are
          left (`_rest`) in the next turn, and reading is paused meanwhile.
        """
        self._keep_alive.pop(self, None)
        self._fast_request = None
        self._parts = 0
        piece_bytes = self._reader.piece_bytes(data)
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            self.bytes_since_progress += len(piece)
            self._reader.feed(piece)
            if self.state in ENDED or self.bytes_since_progress > self._limits.header_bytes:
                break
            if self._parts > MOST_PARTS and self.state is BODY and self._reader.in_chunks:
                self._rest = data[start + piece_bytes :]
                break
        self._limit_time()
        if self._rest and self.state not in ENDED:
            self.flow.pause_reading(UNPARSED)
            self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        """Parses, in a new turn of the event loop, the data that the last turn left in `_rest`.

        If they are the last ones, and the client's EOF came before they were parsed, the EOF is handled now.
        """
        data, self._rest = self._rest, b""
        if self.state in ENDED or self.transport.is_closing():
            return
        self.flow.resume_reading(UNPARSED)
        self._parse_for_a_turn(data)
        if self._ended_early and not self._rest and not self.eof_received():
            self.transport.close()

    def _limit_time(self) -> None:
        """Limits the time in which the rest of a header block or of a body has to arrive, unless a timer runs already.

        Refuses a header block that is too large.
        """
        if self.bytes_since_progress > self._limits.header_bytes:
            self.refuse(431)
        elif self._timer is None and not self.transport.is_closing():
            if self.state is BODY:
                self._watch_body()
            elif self.state is HEAD or (self.state is IDLE and self.bytes_since_progress):
                self._start_timer(self._limits.header_seconds, self._head_is_late)

    def eof_received(self) -> bool:
        """Handles the end of what the client sends (EOF): it may still read the answers to its requests.

        Returns whether the transport stays open for these, at most `HALF_CLOSED_SECONDS`, or longer while the client
        reads. False if there is nothing to answer; and over TLS, which ends in both directions at once.
        """
        if self.transport.is_closing():
            return False
        if self._rest and self.transport.can_write_eof():  # first the requests in `_rest`
            self._ended_early = True  # so `_parse_rest` calls this function again
            return True
        self.flow.end()
        self.refuse(None)
        if self.transport.is_closing() or not self.is_answering() or not self.transport.can_write_eof():
            return False
        self._abort_later(HALF_CLOSED_SECONDS, lambda: self.flow.write_paused)
        return True

    # What the reader of requests reports.

    def request_begins(self, head: Head) -> None:
        """Starts the request of a complete header block, or queues it if an earlier one is being answered.

        Only the first request in the data of one read may skip ASGI: to refuse hundreds at once would block the event
        loop. Through ASGI each request has its own turn of the loop.
        """
        self._stop_timer()
        if len(self._waiting) > MAX_PIPELINED:
            self.newest.keep_alive = False  # so the last answer has `connection: close`
            self.refuse(None)
            return
        may_skip_asgi = self._fast_request is None and not self.is_answering()
        fast_request = self._fast_path.begin(self, head) if self._fast_path and may_skip_asgi else None
        if fast_request is not None:
            self.newest = self._answering = self._fast_request = fast_request
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
        self.enter(Event.HEAD_COMPLETE)
        self.bytes_since_progress = 0

    def body_part(self, body: bytes) -> None:
        """Passes a part of the body to the newest request, and counts its memory if the request waits."""
        self.bytes_since_progress = 0
        self._parts += 1
        self.newest.body_part(body)
        if self._waiting:
            self._pipelined.holds(self._pipelined.size + len(body))

    def body_complete(self) -> None:
        """Tells the newest request that its body is complete."""
        self._stop_timer()
        self.bytes_since_progress = 0
        self.newest.body_complete()
        if not self.is_answering() and not self._waiting:  # the request was answered before its body ended
            self.newest = self._answering = None

    def _start(self, request: AsgiRequest) -> None:
        """Runs the application for a request in a task of its own; its answer is written next."""
        self._answering = request
        task = self.loop.create_task(request.run(self._app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    # What a request calls.

    def answered(self, response: bytes, *, keep_alive: bool) -> bool:
        """Writes the whole response of a fast request, and goes on (`on_response_complete`).

        Returns False, without that, if the client is gone: then the response was not sent.
        """
        flow = self.flow
        if self.transport.is_closing() or (flow.read_paused and flow.lost()):
            return False
        self.transport.write(response)
        if self.transport.is_closing():  # the write has failed
            return False
        if flow.write_paused:
            self._unwritten.holds(self.transport.get_write_buffer_size())
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def on_response_complete(self) -> None:
        """Goes on after a complete answer, in one of these ways.

        - The answer has ended the connection: it is closed.
        - A request waits: it is started.
        - The connection was refused, and no request waits: it ends.
        - Else it waits for the next request, for `keep_alive_seconds`. A timer that runs already is not restarted: when
          it ends, it looks at `_answered_at` (`keep_alive_is_over`).
        """
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self.transport.is_closing():
            self.enter(Event.ENDED)
            self._stop_timer()
            self._watch_unread()
            return
        if self._waiting:
            request = self._waiting.popleft()
            if not self._waiting:  # it counts the memory of its own body from now on
                self._pipelined.close()
            self._start(request)
            if self.state is BROKEN and request is self.newest:  # its answer is the refusal
                self._end()
        elif self.state in ENDED:
            self._end()
        else:
            if self._keep_alive_timer is None:
                self._keep_alive_timer = self.loop.call_later(self.keep_alive_seconds, self.keep_alive_is_over)
            if self.state is IDLE and not self.bytes_since_progress:  # no byte of a next request has arrived
                self._keep_alive[self] = self._answered_at
            if self.state is not BODY:
                self.newest = self._answering = None
        if self.flow.read_paused:
            self.flow.resume_reading()

    # How the connection ends.

    def refuse(self, status: int | None, detail: str = "") -> None:
        """Reads no more from the connection, and ends it once the earlier requests have their answers.

        With a `status`, a refusal is written after these answers; `detail` says what is wrong. With None the connection
        ends without a refusal. If the body of the newest request is being read, the refusal is the answer to that
        request; if its own answer has begun, no refusal is written.
        """
        if self.state in ENDED or self.transport.is_closing():
            return
        self._stop_timer()
        if status == 400:
            self._malformed.note(detail, self.client[0] if self.client else "unknown")
        refuses_newest = self.state is BODY
        if refuses_newest and self.newest.response_started:
            refuses_newest, status = False, None
        self.enter(Event.REFUSED_UNANSWERED if refuses_newest else Event.REFUSED)
        self._refusal = None if status is None else (status, detail)
        self.flow.discard()
        if not self.is_answering() or (refuses_newest and self._answering is self.newest):
            self._end()

    def _end(self) -> None:
        """Writes the refusal, if there is one, and ends the connection, once every earlier request has its answer."""
        if self.state is BROKEN:  # the refusal, or the end, takes the place of the newest request's answer
            self.newest.refused(CLIENT_LEFT if self._refusal is None else self._refusal[0])
        self.enter(Event.ALL_ANSWERED)
        if self._refusal is not None:
            self._write_refusal(*self._refusal)
        self._close()

    # Called by timers. When the process was stopped (SIGSTOP) and goes on, a timer may run before the data that arrived
    # meanwhile are read: so these functions ask `has_arrived`.

    def keep_alive_is_over(self) -> None:
        """Closes a connection that has been idle for `keep_alive_seconds`, when the timer ends.

        If an answer was written since the timer began, it starts the timer again, for the rest of the time; and for a
        while if a request is being read, whose own time is limited, or has arrived and is not read yet.
        """
        self._keep_alive_timer = None
        if self.state is CLOSED or self.is_answering() or self.transport.is_closing():
            return  # the connection ends, or the answer will set a new timer
        seconds_left = self._answered_at + self.keep_alive_seconds - self.loop.time()
        reads = self.state is not IDLE or self.bytes_since_progress > 0
        if seconds_left <= 0 and (reads or has_arrived(self.transport)):
            seconds_left = BODY_PERIOD_SECONDS if reads else UNREAD_SECONDS
        if seconds_left > 0:
            self._keep_alive_timer = self.loop.call_later(seconds_left, self.keep_alive_is_over)
        else:
            self._close()

    def _watch_body(self) -> None:
        """Starts a period at whose end `check_body` compares the bytes received in it with the slowest rate allowed."""
        self._period_bytes = 0
        self._start_timer(BODY_PERIOD_SECONDS, self.check_body)

    def check_body(self) -> None:
        """Refuses a body that has arrived too slowly in the period that ends now; else starts the next period.

        If bytes have arrived that are not read yet, this process is late, not the client: then it checks again after
        `UNREAD_SECONDS`.
        """
        if self._was_paused() or self._period_bytes >= MIN_BODY_BYTES_PER_SECOND * BODY_PERIOD_SECONDS:
            self._watch_body()
        elif has_arrived(self.transport):
            self._start_timer(UNREAD_SECONDS, self.check_body)
        else:
            self.refuse(408)

    def _head_is_late(self) -> None:
        """Refuses a request whose header block has not arrived in time, with 408, when the timer ends.

        It waits again if reading was paused, and for `UNREAD_SECONDS` if bytes have arrived that are not read yet. If
        the client has sent nothing at all, the connection is aborted without an answer.
        """
        if self._was_paused():
            self._start_timer(self._limits.header_seconds, self._head_is_late)
        elif has_arrived(self.transport):
            self._start_timer(UNREAD_SECONDS, self._head_is_late)
        elif self.state is IDLE and not self.bytes_since_progress:
            self.transport.abort()
        else:
            self.refuse(408)
