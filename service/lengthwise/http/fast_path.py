"""A connection that answers ordinary requests without ASGI, and without the parser if their header block is known.

`FastPath` decides which requests are ordinary. Each is a `FastRequest` in the place of an `AsgiRequest`, so that
pipelining, keep-alive and shutdown work as for the others. Beside the states of `Connection` a request that arrives
whole may skip them: one whose header block is that of the request before it (`KnownHead`) goes from IDLE to its
answer, and the state stays IDLE.

A connection that stays open carries one request after another. Their header blocks are the same bytes, but for the
digits of `content-length`, so the result of parsing the first one is right for the others, and two comparisons of bytes
recognise them. Every other header block goes through the parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from lengthwise.connections.inflight import Hold
from lengthwise.http.connection import Connection
from lengthwise.http.fast_request import MAX_DIGITS, FastPath, FastRequest
from lengthwise.http.request_reader import Head
from lengthwise.http.states import ENDED, IDLE
from lengthwise.protocols.endpoint import Endpoint

_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]{1,%d})(?=\r\n)" % MAX_DIGITS, re.IGNORECASE)
_END: Final = b"\r\n\r\n"


class FastConnection(Connection):
    """One connection, within bounds, whose ordinary requests do without ASGI.

    Args:
        fast_path: Decides which requests are ordinary.
        options: Of `Connection`.
    """

    def __init__(self, *, fast_path: FastPath, **options: Any) -> None:
        super().__init__(**options)
        self._fast_path = fast_path
        self._unwritten = Hold(fast_path.inflight)  # answers that the client has yet to read
        self._ahead = Hold(fast_path.inflight)  # bodies of requests that wait for the one before them
        self._begun: FastRequest | None = None  # by the data that are being parsed
        self._body: list[bytes] = []  # of the fast request that is being read
        self._known: KnownHead | None = None
        self._answered_at = 0.0

    # What the transport calls.

    def connection_lost(self, exc: Exception | None) -> None:
        """Releases the memory of unread answers: they are gone with the connection."""
        super().connection_lost(exc)
        self._unwritten.close()
        self._ahead.close()

    def data_received(self, data: bytes) -> None:
        """Recognises the header block of the request before it, or has the data parsed and remembers the new one."""
        between = self.state is IDLE
        if between and self._known is not None and self._is_known(self._known, data):
            return
        super().data_received(data)
        begun, self._begun = self._begun, None
        if between and self.state is IDLE and begun is not None and begun.admitted:
            self._known = KnownHead.of(data, begun)

    def _is_known(self, known: KnownHead, data: bytes) -> bool:
        """Whether the data are a whole request with a known header block; if so, answers it without the parser."""
        if self.is_answering() or self.transport.is_closing():
            return False
        body = known.body(data, self._fast_path.max_bytes)
        if body is None:
            return False
        self._kept_alive.pop(self, None)
        if self._timer is not None:
            self._stop_timer()
        self.unparsed_bytes = 0
        self.newest = self._answering = request = FastRequest(self, known.endpoint, known.headers, known.scope)
        request.body_complete(body, known=True)
        return True

    def pause_writing(self) -> None:
        """Counts the unread answers as memory, because the client does not read."""
        super().pause_writing()
        self._unwritten.holds(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Releases the memory of the answers: the client has read nearly all of them."""
        self._unwritten.close()
        super().resume_writing()

    # What the reader of requests reports.

    def _begin(self, head: Head) -> None:
        """Begins a fast request where the connection has nothing to answer and stays open, else one through ASGI.

        Of the requests that arrived together only the first may be a fast one: it is answered here and now where it is
        wrong, and hundreds of those in a row would block the event loop. Through ASGI each has its own turn.
        """
        free = self._begun is None and not self.is_answering()
        if free and head.version == "1.1" and head.keep_alive:
            request = self._fast_path.begin(self, head)
            if request is not None:
                self._body.clear()
                self.newest = self._answering = self._begun = request
                return
        super()._begin(head)

    def _body_part(self, body: bytes) -> None:
        request = self.newest
        if not isinstance(request, FastRequest):
            super()._body_part(body)
            if self._waiting:
                self._ahead.holds(self._ahead.size + len(body))
            return
        request.body_part(len(body))
        if request.response_complete:  # there was no memory for it: the rest of the body is dropped
            self._body.clear()
        else:
            self._body.append(body)

    def _body_complete(self) -> None:
        request = self.newest
        if not isinstance(request, FastRequest):
            super()._body_complete()
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        request.body_complete(body)

    # What a request calls.

    def answered(self, response: bytes, *, keep_alive: bool) -> bool:
        """Writes the whole response of a fast request; the next request may begin.

        Returns:
            Whether the transport accepted it.
        """
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
        """The next request may begin. A keep-alive timer that is running is not set anew, which would take longer."""
        self._answered_at = self.loop.time()
        if self._ahead.size and len(self._waiting) <= 1:  # the last of them begins, and counts its own body
            self._ahead.close()
        if self._keep_alive_timer is None or self._waiting or self.state in ENDED or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self._is_kept_alive()
        if self.flow.read_paused or self.flow.behind:
            self.flow.resume_reading()

    def keep_alive_is_over(self) -> None:
        """Closes the connection if it had no request for long enough; else the timer was set for an earlier answer."""
        self._keep_alive_timer = None
        if self.newest is None or self.is_answering():
            return  # the connection is lost, or the answer will set a timer
        left = self._answered_at + self.keep_alive_seconds - self.loop.time()
        if left > 0:
            self._keep_alive_timer = self.loop.call_later(left, self.keep_alive_is_over)
        else:
            super().keep_alive_is_over()


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A header block that was parsed.

    Attributes:
        before: Its bytes before the digits of the content length.
        after: Its bytes after them, with the empty line.
        endpoint: Answers the request.
        headers: The headers, by lower-case name, without the content length.
        scope: See `FastRequest`.
    """

    before: bytes
    after: bytes
    endpoint: Endpoint
    headers: dict[bytes, bytes]
    scope: dict[str, Any]

    @classmethod
    def of(cls, request: bytes, begun: FastRequest) -> KnownHead | None:
        """The header block of a request; None where the content length is not in it exactly once and plainly.

        Args:
            request: Its header block and its body, and nothing else.
            begun: The request as it was parsed.
        """
        headers = begun.headers
        end = request.find(_END) + len(_END)
        lengths = list(_CONTENT_LENGTH.finditer(request, 0, end))
        if len(lengths) != 1:
            return None
        start, stop = lengths[0].span(1)
        digits = request[start:stop]
        if digits != headers.get(b"content-length") or int(digits) != len(request) - end:
            return None
        others = {name: value for name, value in headers.items() if name != b"content-length"}
        return cls(request[:start], request[stop:end], begun.endpoint, others, begun.scope)

    def body(self, request: bytes, max_bytes: int) -> bytes | None:
        """The body of a whole request with this header block; None for any other request."""
        before, after = self.before, self.after
        if not request.startswith(before):
            return None
        start = len(before)
        stop = request.find(after, start, start + MAX_DIGITS + len(after))
        digits = request[start:stop]
        if stop < 0 or not digits.isdigit():
            return None
        body = stop + len(after)
        length = len(request) - body
        return request[body:] if length == int(digits) and length <= max_bytes else None
