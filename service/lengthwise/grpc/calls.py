"""Calls over gRPC other than inference: their messages are small, and each kind is received within a bound of its own.

| calls | their messages | how many at once |
|---|---|---|
| `ServerLive`, `ServerReady`, `Health/Check` | received if that can be done at once; else it counts as empty | |
| `Health/Watch` | as those of other calls | `MAX_WATCHES` |
| reflection | each within the default timeout: its streams are few | `MAX_STREAMS` |
| others | received when there is memory for them (`receiving`) | |

So a probe is answered whatever other callers do: it waits for nobody. Handlers get bytes and parse them themselves: if
gRPC parses, a message that cannot be parsed is an exception in its log.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from lengthwise.connections.inflight import Hold
from lengthwise.errors import (
    DeadlineExceeded,
    Forbidden,
    InflightFull,
    InvalidRequest,
    ModelNotFound,
    Problem,
    RequestError,
    TooLarge,
)
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.codec import parse_message
from lengthwise.grpc.connections import GrpcConnections
from lengthwise.grpc.infer import SERVICE, refuse
from lengthwise.grpc.receiving import ARRIVED, LEFT, IncomingMessage, Receiving
from lengthwise.grpc.transport import Handler, RpcCall
from lengthwise.protocols import inventory, kserve
from lengthwise.protocols.body import TOO_MANY_BYTES
from lengthwise.repository.registry import ServedModel
from lengthwise.serving import Serving

HEALTH: Final = "grpc.health.v1.Health"
MAX_WATCHES: Final = 64  # watches of the health service at once
MAX_STREAMS: Final = 8  # streams of requests at once, which only reflection has
_SLOTS: Final = 2  # messages received at once, and those of probes: any of them might be as large as allowed
_PROBE_SECONDS: Final = 0.1  # within which the message of a probe must arrive

M = TypeVar("M", bound=Message)
Fields: TypeAlias = Mapping[str, Any]
Status = health_pb2.HealthCheckResponse


class SmallCalls:
    """Answers the calls of the module's table."""

    def __init__(self, serving: Serving, connections: GrpcConnections) -> None:
        self._serving = serving
        self._seconds = serving.settings.default_timeout_ms / 1000  # within which a message must arrive
        limits = serving.request_limits
        self._max_bytes = limits.control_body_bytes
        self._receiving = Receiving(serving.inflight, limits.body_bytes, connections.received_bytes, _SLOTS)
        self._probes = asyncio.Semaphore(_SLOTS)  # for probes, so that other calls cannot delay them
        self.health = HealthService(serving)
        self.streams = {"watch": 0, "reflection": 0}  # open ones of each kind

    def handlers(self) -> dict[str, Handler]:
        """The handler of each method, by its path `/package.Service/Method`."""
        serving = self._serving
        # Methods of the Open Inference Protocol: what answers a request, with the fields of the response
        probes: dict[str, Callable[[Any], Fields]] = {
            "ServerLive": lambda _: {"live": serving.alive},
            "ServerReady": lambda _: {"ready": serving.ready},
        }
        calls: dict[str, Callable[[Any], Fields | Awaitable[Fields]]] = {
            "ServerMetadata": lambda _: inventory.server(),
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda request: inventory.model(serving, self._find(request)),
            "ModelConfig": self._model_config,
            "ModelStatistics": lambda request: inventory.statistics(
                serving, request.name or None, request.version or None
            ),
            "RepositoryIndex": lambda request: {"models": inventory.index(serving, ready=request.ready)},
            "RepositoryModelLoad": partial(self._change, inventory.load),
            "RepositoryModelUnload": partial(self._change, inventory.unload),
        }
        services = (SERVICE, HEALTH, reflection.SERVICE_NAME)
        return {
            f"/{HEALTH}/Check": self._unary_handler(
                Status, self._receive_probe, health_pb2.HealthCheckRequest, self.health.check
            ),
            f"/{HEALTH}/Watch": self._stream_handler(
                "watch", MAX_WATCHES, self._watch, grpc.StatusCode.RESOURCE_EXHAUSTED
            ),
            f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": self._stream_handler(
                "reflection", MAX_STREAMS, partial(self._reflect, ReflectionServicer(service_names=services))
            ),
        } | {
            f"/{SERVICE}/{name}": self._unary_handler(
                getattr(pb, f"{name}Response"), receive, getattr(pb, f"{name}Request"), answer
            )
            for receive, answers in ((self._receive_probe, probes), (self._receive, calls))
            for name, answer in answers.items()
        }

    def _unary_handler(
        self,
        response_type: type[Message],
        receive: Callable[[RpcCall], Awaitable[bytes]],
        request_type: type[M],
        answer: Callable[[M], Fields | Awaitable[Fields]],
    ) -> Handler:
        """Makes the handler of a unary call: `answer` gets the parsed request, and returns the fields of the response.

        `receive` awaits the message of a call.
        """

        async def handle(rpc: RpcCall) -> None:
            """Answers one call, or refuses it."""
            try:
                result = answer(parse_message(request_type, await receive(rpc)))
                fields = await result if inspect.isawaitable(result) else result
                rpc.finish(message=response_type(**fields).SerializeToString())
            except RequestError as error:
                refuse(rpc, error.with_traceback(None))

        return handle

    def _stream_handler(
        self,
        stream_kind: str,
        max_streams: int,
        handle: Callable[[RpcCall], Awaitable[None]],
        code: grpc.StatusCode | None = None,
    ) -> Handler:
        """Makes the handler of a kind of stream, of which few may be open at once, since they have no deadline.

        `code` is that of the refusal of a further stream, None for the usual one.
        """

        async def answer(rpc: RpcCall) -> None:
            """Runs the handler of a stream, or refuses the stream if too many are open."""
            if self.streams[stream_kind] >= max_streams:
                refuse(rpc, InflightFull("too many streams are open", retry_after_seconds=1), code=code)
                return
            self.streams[stream_kind] += 1
            try:
                await handle(rpc)
            except RequestError as error:
                refuse(rpc, error.with_traceback(None))
            finally:
                self.streams[stream_kind] -= 1

        return answer

    def _find(self, request: Any) -> ServedModel:
        """The served model that a request names."""
        return kserve.find(self._serving, request.name, request.version or None)

    def _model_ready(self, request: pb.ModelReadyRequest) -> Fields:
        """Answers `ModelReady`: whether the model can be used; False also if it is not served."""
        try:
            return {"ready": self._serving.answers(self._find(request))}
        except RequestError:  # not known, unloaded or not started: that is an answer here, and no error
            return {"ready": False}

    def _model_config(self, request: pb.ModelConfigRequest) -> Fields:
        """Answers `ModelConfig`, which Triton's tools read."""
        return {"config": json_format.ParseDict(inventory.config(self._serving, self._find(request)), pb.ModelConfig())}

    async def _change(self, apply: Callable[[Serving, str, Fields], Awaitable[None]], request: Any) -> Fields:
        """Loads or unloads a model by `apply`.

        Raises:
            Forbidden: The service has an admin port: then only calls to that port may do it.
        """
        if self._serving.settings.admin_port is not None:
            raise Forbidden("models are loaded and unloaded over HTTP on the admin port")
        await apply(self._serving, request.model_name, dict(request.parameters))
        return {}

    async def _watch(self, rpc: RpcCall) -> None:
        """Answers a watch of the health service."""
        await self.health.watch(parse_message(health_pb2.HealthCheckRequest, await self._receive(rpc)), rpc)

    async def _reflect(self, servicer: ReflectionServicer, rpc: RpcCall) -> None:
        """Answers the requests of a reflection stream: the names of the services, and their messages."""

        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            """The requests of the stream.

            Raises:
                DeadlineExceeded: The next one does not come within the default timeout.
            """
            while True:
                try:
                    async with asyncio.timeout(self._seconds):
                        body = await rpc.read()
                except TimeoutError:
                    raise DeadlineExceeded("the next request did not come in time") from None
                if body is None:
                    return
                yield parse_message(reflection_pb2.ServerReflectionRequest, self._small_body(body))

        responses: Any = servicer.ServerReflectionInfo(requests(), rpc)
        async for response in responses:
            await rpc.send(response.SerializeToString())

    async def _receive(self, rpc: RpcCall) -> bytes:
        """Waits until there is memory for the one message of a call, receives it, and returns its bytes.

        Raises `InvalidRequest` if there is no message, `TooLarge` if it is too large, and `InflightFull` or
        `DeadlineExceeded` if it cannot be received in time.
        """
        hold = Hold(self._serving.inflight)
        arrival: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def received(body: bytes | None, error: RequestError | None = None) -> None:
            """Ends the wait for the message: with its bytes (None: there is none), or with the error of a refusal."""
            if arrival.done():
                return
            if error is None:
                arrival.set_result(body)
            else:
                arrival.set_exception(error)

        deadline, begin, refuse = (
            time.monotonic() + self._seconds,
            partial(rpc.receive, received),
            partial(received, None),
        )
        message = IncomingMessage(self._receiving, rpc.client, hold, deadline, begin, refuse)
        rpc.on_complete = message.complete
        body = None
        try:
            body = await arrival
        finally:
            message.enter(LEFT if body is None else ARRIVED)
            hold.close()
        return self._small_body(body)

    async def _receive_probe(self, rpc: RpcCall) -> bytes:
        """The message of a probe; b"" if all slots for probes are taken, or it does not arrive at once."""
        if not self._probes.locked():
            with suppress(TimeoutError):
                async with self._probes, asyncio.timeout(_PROBE_SECONDS):
                    return self._small_body(await rpc.read())
        return b""

    def _small_body(self, body: bytes | None) -> bytes:
        """The bytes of a small message.

        Raises:
            InvalidRequest: There is no message.
            TooLarge: It has more bytes than such a call may have.
        """
        if body is None:
            raise InvalidRequest([Problem("", "the call has no message")])
        if len(body) > self._max_bytes:
            raise TooLarge(TOO_MANY_BYTES.format(self._max_bytes))
        return body


class HealthService:
    """gRPC's health service: the status of the server (service "") and of its inference service, which is the same."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._ended = False  # whether the server stops
        self._reported = self._status("")  # the last status that the watches were woken for
        self._changed = asyncio.Event()  # set, and replaced, at each change of the status

    def report(self) -> None:
        """Wakes the watches if the status has changed since the last call."""
        status = self._status("")
        if status != self._reported:
            self._reported = status
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def end(self) -> None:
        """Reports NOT_SERVING from now on, because the server stops."""
        self._ended = True
        self.report()

    def check(self, request: health_pb2.HealthCheckRequest) -> Fields:
        """Answers `Check`: the status of a service now.

        Raises:
            ModelNotFound: There is no such service.
        """
        self.report()  # the watches learn of a change at the latest when a check does
        status = self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            raise ModelNotFound("there is no such service")
        return {"status": status}

    async def watch(self, request: health_pb2.HealthCheckRequest, rpc: RpcCall) -> None:
        """Answers `Watch`: sends the status now and at each change, until the call is cancelled."""
        sent_status = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != sent_status:
                sent_status = status
                await rpc.send(Status(status=status).SerializeToString())
            await changed.wait()

    def _status(self, service: str) -> Any:
        """The status of a service now."""
        if service not in ("", SERVICE):
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._serving.ready and not self._ended else Status.NOT_SERVING
