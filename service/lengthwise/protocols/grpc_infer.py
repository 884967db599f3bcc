"""Inference calls over gRPC: receives the message of a `ModelInfer`, and returns that of its answer.

What happens in between is `lengthwise.protocols.call`. A call's own deadline counts like `timeout_ms`, and a client
that cancels is one that left. A refusal has the code of its HTTP status (`CODES`), and is counted by that status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import grpc

from lengthwise.connections.unread import PATIENCE_SECONDS
from lengthwise.errors import DeadlineExceeded, InvalidRequest, Problem, RequestError
from lengthwise.protocols import grpc_codec, kserve
from lengthwise.protocols.body import CLIENT_LEFT
from lengthwise.protocols.call import InferenceCall
from lengthwise.protocols.endpoint import TENSORS_BYTES, Decoded, InferenceProtocol, Received
from lengthwise.protocols.grpc_transport import RpcCall
from lengthwise.protocols.receiving import Receiving
from lengthwise.protocols.tensors import KnownHeads
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving

SERVICE: Final = "inference.GRPCInferenceService"
INFER: Final = f"{SERVICE}/ModelInfer"
CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's code for the HTTP status of a refusal."""
_LONGEST_DETAILS: Final = 2000
"""Details travel in a header, which has few kilobytes."""


class ModelInfer(InferenceProtocol):
    """Decodes the messages of `ModelInfer`."""

    name = INFER
    memory_factor = 3  # as it came, as protocol buffers have it, and its elements

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        super().__init__(serving, large_bodies)
        self._known = KnownHeads()

    def check(self, headers: dict[bytes, bytes]) -> None:
        """Accepts every call: the metadata decides nothing."""

    def decode(self, request: Received) -> Decoded:
        """Decodes a message; see `InferenceProtocol.decode`."""
        return grpc_codec.decode(request.body, self.serving, self._known)

    def decode_quickly(self, request: Received) -> Decoded | None:
        """Decodes a message on the event loop if that is quick; see `InferenceProtocol.decode_quickly`."""
        return self.decode(request) if len(request.body) <= TENSORS_BYTES else None


class GrpcInference:
    """Answers the calls of `ModelInfer`.

    Args:
        protocol: Decodes the messages.
        receiving: When their messages may be received.
    """

    def __init__(self, protocol: ModelInfer, receiving: Receiving) -> None:
        self._protocol = protocol
        self._receiving = receiving

    async def answer(self, rpc: RpcCall) -> None:
        """Answers one call.

        Its bytes count as held until its answer has left, for which a client has `PATIENCE_SECONDS`.
        """
        call = InferenceCall(self._protocol, headers_of(rpc.metadata), rpc.peer)
        rpc.on_end(call.hold.close)
        request_id = ("x-request-id", call.request_id.decode())
        try:
            call.admit()
            call.submit(await self._read(call, rpc), lambda message, _: message)
            answer: bytes = await call.answer()
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            late = cancelled and rpc.time_remaining() == 0  # the deadline passed there before it did here
            refusal = call.fail(DeadlineExceeded("the deadline passed") if late else error)
            if refusal is None:
                call.close(CLIENT_LEFT, delivered=False)
            else:
                call.close(kserve.status_of(refusal))
            if cancelled or refusal is None:
                raise
            refuse(rpc, refusal, request_id)
            return
        call.hold.holds(len(answer))
        call.close(200)
        rpc.finish(trailing=(request_id,), message=answer)
        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, rpc.cancel)
        rpc.on_end(timer.cancel)

    async def _read(self, call: InferenceCall, rpc: RpcCall) -> Decoded:
        """Receives and decodes the message. None of its bytes is referred to when this returns.

        Raises:
            RequestError: The message is wrong or too late, or there is no memory for it.
        """
        late_at, remaining = call.deadline, rpc.time_remaining()
        if remaining is not None:
            call.limit(call.record.arrived + remaining)
        async with self._receiving.one(call.hold, min(late_at, call.deadline), rpc.client):
            body = await rpc.read()
        if body is None:
            raise InvalidRequest([Problem("", "the call has no message")])
        call.hold.holds(len(body))
        call.begin_decoding()
        return await call.decode(Received({}, call.headers, body))


def refuse(rpc: RpcCall, error: RequestError, *trailing: tuple[str, str], code: grpc.StatusCode | None = None) -> None:
    """Ends a call with an error's code, or `code`; when to come back is said as gRPC's retries want it."""
    metadata = list(trailing)
    if error.retry_after_seconds is not None:
        metadata.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after_seconds * 1000)))))
    rpc.finish(code or CODES[kserve.status_of(error)], kserve.sentence(error)[:_LONGEST_DETAILS], tuple(metadata))


def headers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[bytes, bytes]:
    """A call's metadata, in the form of HTTP's headers."""
    return {name.encode(): value.encode() if isinstance(value, str) else bytes(value) for name, value in metadata or ()}
