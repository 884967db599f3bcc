"""Inference calls over gRPC: receives the message of a `ModelInfer`, and returns that of its answer.

What happens in between is `lengthwise.protocols.call`. A call's own deadline counts like `timeout_ms`, and a client
that cancels counts as one that left. A refusal has the code of its HTTP status (`CODES`), and is counted by that
status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeAlias

import grpc

from lengthwise.batching.queues import Timing
from lengthwise.errors import DeadlineExceeded, InvalidRequest, Problem, RequestError
from lengthwise.grpc import codec
from lengthwise.grpc.receiving import ARRIVED, LEFT, IncomingMessage, Receiving
from lengthwise.grpc.transport import RpcCall
from lengthwise.protocols import kserve
from lengthwise.protocols.body import CLIENT_LEFT, ClientLeft
from lengthwise.protocols.call import DirectCall, InferenceCall
from lengthwise.protocols.endpoint import TENSORS_BYTES, Decoded, InferenceProtocol, KnownRequests, Received
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving

SERVICE: Final = "inference.GRPCInferenceService"
INFER: Final = f"{SERVICE}/ModelInfer"
STREAM: Final = f"{SERVICE}/ModelStreamInfer"
CODES: Final = {  # gRPC's code for the HTTP status of a refusal
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_UNREAD_SECONDS: Final = 0.02  # see `refuse_unread`
_LONGEST_DETAILS: Final = 2000  # characters of an error's message: it is sent in a header, which has few kilobytes


class ModelInfer(InferenceProtocol):
    """The protocol of `ModelInfer` and `ModelStreamInfer`, whose requests have one form; `name` is for call records."""

    memory_factor = 3  # the message as it came, as protocol buffers parse it, and its elements
    most_fast_bytes = TENSORS_BYTES

    def __init__(self, serving: Serving, large_bodies: Turns, name: str) -> None:
        super().__init__(serving, large_bodies)
        self.name = name
        self._known = KnownRequests()  # parsed messages, see `codec`

    def read(self, request: Received, *, fast: bool) -> Decoded | None:
        """Decodes a message; returns its call, and the function that encodes the call's answer.

        `fast` makes no difference: no message of up to `most_fast_bytes` blocks the event loop for long.
        """
        return codec.decode(request.body, self.serving, self._known, request.scope.get("parts"))


class RpcRequest(DirectCall):
    """One request from its message to its answer; `rpc` is the call or the stream that brought it.

    At its end it calls `ends(request, refusal, answer)` once. One of the two is None; both are, if the client has left.
    """

    __slots__ = ("_ends",)

    def __init__(self, protocol: ModelInfer, rpc: RpcCall, headers: dict[bytes, bytes], ends: Ends) -> None:
        super().__init__(InferenceCall(protocol, headers, rpc.peer))
        self._ends = ends
        if (remaining := rpc.time_remaining()) is not None:
            self.call.limit(self.call.record.arrived + remaining)

    def message(self, body: bytes | None, parts: codec.MessageParts | None = None) -> None:
        """Decodes the message (None: there was none) and submits its sequences; `parts`: its parts, if it was split."""
        if self.response_complete:
            return
        if body is None:
            self.set_exception(InvalidRequest([Problem("", "the call has no message")]))
        else:
            self.decode(Received({"parts": parts}, self.call.headers, body))

    def left(self, rpc: RpcCall) -> None:
        """Ends the request, whose client has left; or gRPC has ended the call because its deadline passed."""
        self.set_exception(DeadlineExceeded("the deadline passed") if rpc.is_late() else ClientLeft())

    def write(self, encoded: bytes, timing: Timing) -> bytes:
        """The message of an answer; it is encoded already."""
        return encoded

    def set_result(self, answer: bytes) -> None:
        """Ends the request with its answer."""
        if not self.response_complete:
            self.call.hold.holds(len(answer))
            self._end(200, None, answer)

    def set_exception(self, error: BaseException) -> None:
        """Ends the request with the refusal for an error; if the client has left, with nothing to send."""
        if not self.response_complete:
            self.response_complete = True
            refusal = self.call.fail(error)
            self._end(CLIENT_LEFT if refusal is None else kserve.status_of(refusal), refusal, None)

    def _end(self, status: int, refusal: RequestError | None, answer: bytes | None) -> None:
        """Closes the call with a status, and calls `ends` with the refusal and the answer. Called once."""
        self.response_complete = True
        ends = self._ends
        del self._ends  # breaks a reference cycle with the call or the stream
        self.call.close(status, delivered=status != CLIENT_LEFT)
        ends(self, refusal, answer)


Ends: TypeAlias = Callable[[RpcRequest, RequestError | None, bytes | None], None]


def answer(protocol: ModelInfer, receiving: Receiving, rpc: RpcCall) -> None:
    """Begins to answer a `ModelInfer`: admits the call, and has `receiving` receive its message when there is memory.

    The callbacks do the rest: `received` decodes the message, `_send` sends the answer or the refusal, and `left` ends
    the work for a client that cancels. The memory is freed when the answer is sent.
    """
    request = RpcRequest(protocol, rpc, headers_of(rpc.metadata), partial(_send, rpc))
    call = request.call
    rpc.on_end(call.hold.close)

    def received(body: bytes | None) -> None:
        """Decodes the message."""
        message.enter(LEFT if body is None else ARRIVED)
        request.message(body)

    def left() -> None:
        """Ends the message, and the request without an answer."""
        message.enter(LEFT)
        request.left(rpc)

    try:
        call.admit()
        deadline = min(call.deadline, call.record.arrived + protocol.serving.settings.default_timeout_ms / 1000)
        begin = partial(rpc.receive, received)
        message = IncomingMessage(receiving, rpc.client, call.hold, deadline, begin, request.set_exception)
        rpc.on_cancel, rpc.on_complete = left, message.complete
    except Exception as error:
        request.set_exception(error)


def _send(rpc: RpcCall, request: RpcRequest, refusal: RequestError | None, answer: bytes | None) -> None:
    """Sends the one answer of a call, or its refusal."""
    request_id = ("x-request-id", request.call.request_id.decode())
    if refusal is not None:
        refuse(rpc, refusal, request_id)
    elif answer is not None:
        rpc.finish(trailing=(request_id,), message=answer)


def refuse(rpc: RpcCall, error: RequestError, *trailing: tuple[str, str], code: grpc.StatusCode | None = None) -> None:
    """Ends a call with an error's code (or `code`), its message, and the time after which a client may try again."""
    metadata = list(trailing)
    if error.retry_after_seconds is not None:
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_seconds * 1000)))))
    rpc.finish(code or CODES[kserve.status_of(error)], kserve.sentence(error)[:_LONGEST_DETAILS], tuple(metadata))


def refuse_unread(rpc: RpcCall, error: RequestError) -> None:
    """Refuses, a moment later, a call whose message is not received.

    The client may still be sending the message. If the call ended before that, gRPC's clients would report a failure to
    send in place of the refusal.
    """
    asyncio.get_running_loop().call_later(_UNREAD_SECONDS, refuse, rpc, error)


def headers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[bytes, bytes]:
    """A call's metadata, in the form of HTTP's headers."""
    return {name.encode(): value.encode() if isinstance(value, str) else bytes(value) for name, value in metadata or ()}
