"""Streams of inference requests over gRPC: many on one stream, answered as they are done, each with its id.

```
message ──> RpcRequest ──> answer or error ──> the line of answers ──> sent, one at a time
   ^  next one read while fewer than IN_FLIGHT requests are not answered and sent
```

A stream is silent most of the time, so while it waits for a message it has no slot among those that receive
(`receiving`), as a call has. Instead, the undelivered bytes of its connection are looked at regularly: those that have
arrived and belong to no message yet. If they are more than the windows of its open calls, and the messages that have a
slot, explain, then a large message is arriving. The stream takes a slot for it, with memory for the largest message, or
it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import Final

from lengthwise.connections.inflight import Hold
from lengthwise.connections.listener import KeepAlive
from lengthwise.errors import Draining, InflightFull, RequestError
from lengthwise.grpc import codec
from lengthwise.grpc.connections import GrpcConnections
from lengthwise.grpc.infer import ModelInfer, RpcRequest, headers_of, refuse, refuse_unread
from lengthwise.grpc.receiving import ARRIVED, LEFT, IncomingMessage, Receiving
from lengthwise.grpc.transport import RpcCall
from lengthwise.protocols import kserve
from lengthwise.protocols.call import InferenceCall

MAX_STREAMS: Final = 256  # open at once; a further one ends the stream that is idle longest, or is refused
IN_FLIGHT: Final = 64  # requests of a stream whose answers have not been sent; with so many, it is not read
LOOK_SECONDS: Final = 0.1  # between two looks at the bytes of a waiting stream's connection
WINDOW_BYTES: Final = 131_072  # what HTTP/2 lets a client send ahead on a call, and some frames


class StreamInference:
    """Answers the streams of `ModelStreamInfer`, and reserves memory for their large messages."""

    def __init__(self, protocol: ModelInfer, receiving: Receiving, connections: GrpcConnections) -> None:
        self.protocol = protocol
        self.receiving = receiving
        self.connections = connections
        self.idle = KeepAlive()  # streams that wait for a message, and since when
        self._open: set[_Stream] = set()
        self._timer: asyncio.TimerHandle | None = None  # of the next `_look`, while streams are open

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def answer(self, rpc: RpcCall) -> None:
        """Begins to answer a stream: admits it, and reads its first message.

        A stream that is refused ends at once, with the status of the refusal.
        """
        # A stream is admitted as a call is, but counted only if it is refused: its requests are calls.
        headers = headers_of(rpc.metadata)
        call = InferenceCall(self.protocol, headers, rpc.peer)
        try:
            self._admit(call)
        except RequestError as error:
            refusal = call.fail(error) or error
            call.close(kserve.status_of(refusal))
            refuse_unread(rpc, refusal)
            return
        stream = _Stream(self, rpc, headers)
        self._open.add(stream)
        rpc.on_end(partial(self.forget, stream))
        stream.read()
        if self._timer is None:
            self._look()

    def _admit(self, call: InferenceCall) -> None:
        """Admits a stream. If too many are open, the one that has been idle longest ends for it.

        Raises:
            InflightFull: None of the open ones is idle. Another RequestError: it is refused as a call would be.
        """
        call.admit()
        if len(self._open) >= MAX_STREAMS and not self.idle.make_room(time.monotonic()):
            raise InflightFull("too many streams are open", retry_after_seconds=1)

    def forget(self, stream: _Stream) -> None:
        """Forgets a stream that is over."""
        self._open.discard(stream)
        self.idle.pop(stream, None)

    def _look(self) -> None:
        """Has each stream look for a large message, and repeats that while there are streams."""
        for stream in list(self._open):
            stream.look()
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look) if self._open else None

    def end(self) -> None:
        """Stops reading all streams, because the server stops; each ends after its last answer."""
        for stream in list(self._open):
            stream.end(Draining("the server is shutting down"))


class _Stream:
    """One stream: reads its messages, sends its answers."""

    def __init__(self, inference: StreamInference, rpc: RpcCall, headers: dict[bytes, bytes]) -> None:
        self._inference = inference
        self._rpc = rpc
        self._headers = headers
        self._requests: dict[RpcRequest, str] = {}  # those whose answers were not sent, with their ids
        self._line: deque[tuple[RpcRequest, bytes]] = deque()  # answers that wait to be sent
        self._sending = False  # whether an answer is being sent
        self._reading = False  # whether it waits for a message
        self._ended = False  # whether nothing more is read
        self._refusal: RequestError | None = None  # ends the stream after the last answer; None: it ends with OK
        # While it waits for a message: the bytes of its connection at the last look, and the fewest undelivered ones
        self._received_bytes: int | None = None
        self._fewest_undelivered: int | None = None
        self._large_message: IncomingMessage | None = None  # has a slot for a large message that arrives
        self._hold = Hold(inference.protocol.serving.inflight)  # the memory of that message
        rpc.on_cancel = self._abandon

    def read(self) -> None:
        """Begins to wait for the next message.

        Does nothing if the stream waits already or has ended, or if `IN_FLIGHT` requests have no answer yet.
        """
        if self._reading or self._ended or len(self._requests) >= IN_FLIGHT:
            return
        self._reading, self._received_bytes, self._fewest_undelivered = True, None, None
        self._rpc.receive(self._received)
        self._note_if_idle()

    def give_way(self) -> bool:
        """Ends the stream to make room for a new one; returns False if its next message has begun to arrive."""
        if self._large_message is not None:
            return False
        self._abort(InflightFull("the stream was idle, and a new one needs its place"))
        self._inference.forget(self)
        return True

    def _note_if_idle(self) -> None:
        """Counts the stream as idle from now on, if it waits for a message and has no request without an answer."""
        if self._reading and not self._requests and not self._ended:
            self._inference.idle.setdefault(self, time.monotonic())

    def end(self, refusal: RequestError | None = None) -> None:
        """Reads no more; the stream ends with the refusal, or with OK, once the last answer is sent."""
        if not self._ended:
            self._ended, self._refusal = True, refusal
            self._finish_if_done()

    def _received(self, body: bytes | None) -> None:
        """Handles a message of the stream: its call is admitted, decoded and submitted; then waits for the next one.

        None: the client sends no more, so the stream ends after the last answer.
        """
        self._reading = False
        self._inference.idle.pop(self, None)
        self._give_back(arrived=body is not None)
        if self._ended or self._rpc.finished:
            return
        if body is None:
            self.end()
            return
        request = RpcRequest(self._inference.protocol, self._rpc, self._headers, self._answered)
        parts = codec.MessageParts.of(body)
        self._requests[request] = codec.identifier_of(body) if parts is None else parts.identifier
        try:
            request.call.admit()
        except RequestError as error:  # the key was withdrawn since the stream began
            request.set_exception(error)
        else:
            request.message(body, parts)
        self.read()

    def look(self) -> None:
        """Takes a slot for a large message that has begun to arrive, or ends the stream if no slot is free.

        Called regularly. A large message has begun if the connection has more undelivered bytes than the windows of its
        open calls, and its messages that have slots, explain. That is known from the second look on.
        """
        if not self._reading or self._large_message is not None:
            return
        client, connections, receiving = self._rpc.client, self._inference.connections, self._inference.receiving
        received, received_before = connections.received_bytes(client), self._received_bytes
        self._received_bytes = received
        if received is None:  # the system does not report it
            return
        # `delivered` is an estimate: its error is the fewest undelivered bytes since the stream waits for a message.
        connection = connections.of(client)
        undelivered_now = received - connection.delivered
        self._fewest_undelivered = (
            undelivered_now if self._fewest_undelivered is None else min(self._fewest_undelivered, undelivered_now)
        )
        if received_before is None:
            return
        # Only bytes that came before the last look count: newer ones may belong to messages that gRPC hands over next.
        undelivered = received_before - connection.delivered - self._fewest_undelivered
        if undelivered > WINDOW_BYTES * connection.calls + receiving.expected_bytes(client):
            if not receiving.free:
                self._abort(InflightFull("there is no memory for a large message now", retry_after_seconds=1))
                return
            deadline = time.monotonic() + self._inference.protocol.serving.settings.default_timeout_ms / 1000
            self._large_message = IncomingMessage(receiving, client, self._hold, deadline, bool, self._abort)
            self._rpc.on_complete = self._large_message.complete

    def _abort(self, refusal: RequestError) -> None:
        """Ends the stream at once with a refusal, because a message may not be received."""
        self._abandon()
        refuse(self._rpc, refusal)

    def _give_back(self, *, arrived: bool) -> None:
        """Gives back the slot and the memory that a large message has; `arrived`: whether it came."""
        if self._large_message is not None:
            self._large_message.enter(ARRIVED if arrived else LEFT)
            self._large_message = None
            self._hold.close()

    def _answered(self, request: RpcRequest, refusal: RequestError | None, answer: bytes | None) -> None:
        """Puts the answer or the refusal of a request at the end of the line, and sends the next one of the line.

        If the client has left (both are None), or the stream is over, it only frees the memory of the request.
        """
        identifier = self._requests.get(request)
        if identifier is None or self._rpc.finished or (answer is None and refusal is None):
            self._requests.pop(request, None)
            request.call.hold.close()
            return
        message = (
            codec.stream_answer(answer or b"")
            if refusal is None
            else codec.stream_error(identifier, kserve.sentence(refusal))
        )
        self._line.append((request, message))
        self._send()

    def _send(self) -> None:
        """Sends the next answer of the line, unless one is being sent.

        `sent` follows: it frees the answer, sends the next one, and reads on, because one request fewer is open.
        """
        if self._sending or not self._line:
            return
        self._sending = True
        request, message = self._line.popleft()

        def sent() -> None:
            """Called when the next answer may be sent: frees the memory of this one, sends and reads on."""
            self._sending = False
            self._requests.pop(request, None)
            request.call.hold.close()
            self._send()
            self.read()
            self._note_if_idle()
            self._finish_if_done()

        self._rpc.write(message, sent)

    def _finish_if_done(self) -> None:
        """Ends the call once nothing is read any more and all answers are sent."""
        if not self._ended or self._requests or self._rpc.finished:
            return
        self._give_back(arrived=False)
        if self._refusal is not None:
            refuse(self._rpc, self._refusal)
        else:
            self._rpc.finish()

    def _abandon(self) -> None:
        """Ends the stream without further answers, and withdraws its requests."""
        self._ended = True
        self._give_back(arrived=False)
        requests, self._requests = list(self._requests), {}
        self._line.clear()
        for request in requests:
            request.left(self._rpc)
            request.call.hold.close()
