"""Calls over gRPC other than inference: their messages are small, and each kind is received within a bound of its own.

| calls | their messages | how many at once |
|---|---|---|
| `ServerLive`, `ServerReady`, `Health/Check` | received if that can be done at once; else it counts as empty | |
| `Health/Watch` | as those of other calls | `MAX_WATCHES` |
| reflection | each within the default timeout: its streams are few | `MAX_STREAMS` |
| others | received when there is memory for them (`receiving`) | |

So a probe is answered whatever other callers do: it waits for nobody. Handlers get bytes and parse them themselves:
where gRPC does it, a message that cannot be parsed is an exception in its log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from lengthwise.connections.inflight import Hold
from lengthwise.errors import DeadlineExceeded, InflightFull, InvalidRequest, Problem, RequestError
from lengthwise.protocols import grpc_codec
from lengthwise.protocols.body import too_large
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES
from lengthwise.protocols.grpc_connections import GrpcConnections
from lengthwise.protocols.grpc_infer import refuse
from lengthwise.protocols.grpc_transport import Handler, RpcCall
from lengthwise.protocols.receiving import IncomingMessage, Receiving
from lengthwise.serving import Serving

MAX_WATCHES: Final = 64
"""Watches of the health service at once."""
MAX_STREAMS: Final = 8
"""Streams of requests at once, which only reflection has."""
_PLACES: Final = 2
"""How many small messages are received at once, and how many of probes: each might be a large one."""
_PROBE_SECONDS: Final = 0.1
"""How long the message of a probe may take to arrive."""

M = TypeVar("M", bound=Message)


class SmallCalls:
    """Makes the handlers of calls other than inference.

    Args:
        serving: The service.
        connections: The connections of the calls.
    """

    def __init__(self, serving: Serving, connections: GrpcConnections) -> None:
        self._serving = serving
        self._seconds = serving.settings.default_timeout_ms / 1000
        self._receiving = Receiving(
            serving.inflight, serving.settings.max_body_bytes, connections.received_bytes, _PLACES
        )
        self._free_probes = _PLACES
        self._watches = Streams(MAX_WATCHES, grpc.StatusCode.RESOURCE_EXHAUSTED)
        self._reflections = Streams(MAX_STREAMS)

    def streams(self) -> dict[str, int]:
        """How many streams are open now, by their kind."""
        return {"watch": self._watches.open, "reflection": self._reflections.open}

    def unary(self, kind: type[M], answer: Callable[[M], Message | Awaitable[Message]]) -> Handler:
        """Answers calls of one message."""

        async def handle(rpc: RpcCall) -> None:
            try:
                message = answer(await self._message(kind, rpc))
                rpc.finish(message=(message if isinstance(message, Message) else await message).SerializeToString())
            except RequestError as error:
                refuse(rpc, error.with_traceback(None))

        return handle

    def probe(self, kind: type[M], answer: Callable[[M, RpcCall], Message | None]) -> Handler:
        """Answers a probe, as one with an empty message where its own cannot be received at once."""

        async def handle(rpc: RpcCall) -> None:
            try:
                message = answer(grpc_codec.parsed(kind, await self._probed(rpc)), rpc)
                rpc.finish(message=b"" if message is None else message.SerializeToString())
            except RequestError as error:
                refuse(rpc, error.with_traceback(None))

        return handle

    def watch(self, kind: type[M], answer: Callable[[M, RpcCall], Awaitable[None]]) -> Handler:
        """Answers calls of one message with a stream."""

        async def handle(rpc: RpcCall) -> None:
            await answer(await self._message(kind, rpc), rpc)

        return partial(self._watches.answer, handle)

    def reflection(self, names: tuple[str, ...]) -> Handler:
        """Answers reflection: which services there are, and their messages."""
        servicer = ReflectionServicer(service_names=names)

        async def handle(rpc: RpcCall) -> None:
            responses: Any = servicer.ServerReflectionInfo(self._requests(rpc), rpc)
            async for response in responses:
                await rpc.sent(response.SerializeToString())

        return partial(self._reflections.answer, handle)

    async def _requests(self, rpc: RpcCall) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    body = await rpc.read()
            except TimeoutError:
                raise DeadlineExceeded("the next request did not come in time") from None
            if body is None:
                return
            yield grpc_codec.parsed(reflection_pb2.ServerReflectionRequest, _small(body))

    async def _message(self, kind: type[M], rpc: RpcCall) -> M:
        """Receives the one message of a call.

        Raises:
            RequestError: It does not come, is too large, or is no such message.
        """
        hold = Hold(self._serving.inflight)
        body: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def received(given: bytes | None, error: RequestError | None = None) -> None:
            if not body.done():
                body.set_result(given) if error is None else body.set_exception(error)

        message = IncomingMessage(hold, rpc.client, lambda: rpc.receive(received), partial(received, None))
        self._receiving.start(message, time.monotonic() + self._seconds)
        arrived = False
        try:
            given = await body
            arrived = given is not None
        finally:
            self._receiving.end(message, arrived=arrived)
            hold.close()
        return grpc_codec.parsed(kind, _small(given))

    async def _probed(self, rpc: RpcCall) -> bytes:
        """The message of a probe; empty if it is not received at once."""
        if not self._free_probes:
            return b""
        self._free_probes -= 1
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return _small(await rpc.read())
        except TimeoutError:
            return b""
        finally:
            self._free_probes += 1


class Streams:
    """Streams without a limit of time, of which few are open at once.

    Args:
        most: How many.
        code: The code of a refusal; default: that of too much in memory.

    Attributes:
        open: How many are open now.
    """

    def __init__(self, most: int, code: grpc.StatusCode | None = None) -> None:
        self._most = most
        self._code = code
        self.open = 0

    async def answer(self, handle: Callable[[RpcCall], Awaitable[None]], rpc: RpcCall) -> None:
        """Answers a stream, or refuses it if too many are open."""
        if self.open >= self._most:
            refuse(rpc, InflightFull("too many streams are open", retry_after_seconds=1), code=self._code)
            return
        self.open += 1
        try:
            await handle(rpc)
        except RequestError as error:
            refuse(rpc, error.with_traceback(None))
        finally:
            self.open -= 1


def _small(body: bytes | None) -> bytes:
    """The bytes of a small message.

    Raises:
        RequestError: It is large, or there is none.
    """
    if body is None:
        raise InvalidRequest([Problem("", "the call has no message")])
    if len(body) > LARGE_BODY_BYTES:
        raise too_large(LARGE_BODY_BYTES)
    return body
