"""The Open Inference Protocol over gRPC: the same calls as `v2`, the same batcher, with health service and reflection.

A message is received when there is memory for it: each call is handled as a stream of one message, which gRPC receives
only on request, and `protocols.receiving` decides when. Inference calls are answered in `protocols.grpc_infer`; these
two modules are the only ones that know gRPC. They need the extra `grpc`, so they are imported only where a port for it
is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lengthwise.api_keys import Keys
from lengthwise.errors import ConfigurationError, Forbidden, InflightFull, InvalidRequest, Problem, RequestError
from lengthwise.inflight import Hold
from lengthwise.protocols import grpc_codec, inventory, kserve, model_config, statistics
from lengthwise.protocols.body import too_large
from lengthwise.protocols.endpoint import LARGE_BODY_BYTES
from lengthwise.protocols.grpc_infer import INFER, SERVICE, Context, GrpcInference, ModelInfer, headers_of, refuse
from lengthwise.protocols.open_inference import open_inference_pb2 as pb
from lengthwise.protocols.receiving import Receiving
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving
from lengthwise.settings import Settings

log = logging.getLogger("lengthwise.grpc")

MAX_STREAMS: Final = 8
"""Streams of requests at once, which only reflection has."""
_LAST_ANSWERS_SECONDS: Final = 1.0
"""How long the last answers may take to be sent when the server stops."""
_LATE_CALLS_SECONDS: Final = 1.0
"""How long calls that still come are refused before the server stops: from then on, gRPC cancels them instead, and a
client does not ask again after that."""
_QUIET_SECONDS: Final = 0.1
"""When no call has come for so long, the server stops at once."""
_WINDOW_BYTES: Final = 65_535
"""Bytes of a message that a client may send before the message is received: HTTP/2's default."""
_CALLS_OF_A_CONNECTION: Final = 256
MAX_CALLS: Final = 4096
"""Most calls at once, over all connections; further ones are refused unread."""


class GrpcServer:
    """The gRPC server of the Open Inference Protocol.

    Args:
        serving: Answers the calls.
        large_bodies: The places where large bodies are decoded in threads; shared by all protocols.
    """

    def __init__(self, serving: Serving, large_bodies: Turns) -> None:
        self._serving = serving
        self._protocol = ModelInfer(serving, large_bodies)
        self._receiving = Receiving(serving.inflight, serving.settings.max_body_bytes)
        self._health = _Health(serving)
        self._calls = _SmallCalls(self._receiving, serving)
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens and answers; until the models are ready, calls are refused as not ready.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 for any.

        Returns:
            The port.

        Raises:
            ConfigurationError: The server cannot listen on the address, or the TLS files cannot be read.
        """
        settings = self._serving.settings
        options = [
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            ("grpc.max_concurrent_streams", _CALLS_OF_A_CONNECTION),
            ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
            ("grpc.http2.bdp_probe", 0),  # it would let each client send megabytes ahead
        ]
        keys = self._serving.keys
        interceptors: list[grpc.aio.ServerInterceptor] = [self._calls]
        if keys is not None:
            interceptors.insert(0, _KeyCheck(keys))
        server = grpc.aio.server(options=options, interceptors=interceptors, maximum_concurrent_rpcs=MAX_CALLS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(settings)
        try:
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigurationError(f"cannot listen on {address} for gRPC; another --grpc-port may be free") from error
        await self.report_health()  # first: the library's own first status is SERVING
        await server.start()
        self._server = server
        log.info("listening on grpc://%s", address if port else f"{host}:{bound}")
        return bound

    async def report_health(self) -> None:
        """Sends the health of the server to the clients that watch it."""
        await self._health.report()

    async def stop(self) -> None:
        """Ends every connection, once the accepted calls are answered and those on their way are refused."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._refuse_late_calls()
            await self._server.stop(_LAST_ANSWERS_SECONDS)

    async def _refuse_late_calls(self) -> None:
        """Waits until no call has come for a moment."""
        end = time.monotonic() + _LATE_CALLS_SECONDS
        before = -1
        while self._calls.begun != before and time.monotonic() < end:
            before = self._calls.begun
            await asyncio.sleep(_QUIET_SECONDS)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        methods: dict[str, tuple[type[Message], Callable[[Any], Message | Awaitable[Message]]]] = {
            "ServerLive": (
                pb.ServerLiveRequest,
                lambda _: pb.ServerLiveResponse(live=self._serving.alive),
            ),
            "ServerReady": (pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._serving.ready)),
            "ServerMetadata": (pb.ServerMetadataRequest, lambda _: pb.ServerMetadataResponse(**inventory.server())),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self._unload),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(_answering(request, answer), response_serializer=_serialized)
            for name, (request, answer) in methods.items()
        }
        # Bytes in and bytes out: decoding and encoding them are steps of the call, counted and limited with it.
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            GrpcInference(self._protocol, self._receiving).answer
        )
        return handlers

    def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        try:
            served = kserve.find(self._serving, request.name, request.version or None)
        except RequestError:  # not known, unloaded or not started: that is an answer here, and no error
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._serving.answers(served))

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        served = kserve.find(self._serving, request.name, request.version or None)
        return pb.ModelMetadataResponse(**inventory.model(self._serving, served))

    def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        served = kserve.find(self._serving, request.name, request.version or None)
        return pb.ModelConfigResponse(
            config=json_format.ParseDict(model_config.of(self._serving, served), pb.ModelConfig())
        )

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        document = statistics.of(self._serving, request.name or None, request.version or None)
        return pb.ModelStatisticsResponse(**document)

    def _index(self, request: pb.RepositoryIndexRequest) -> Message:
        return pb.RepositoryIndexResponse(models=inventory.index(self._serving, ready=request.ready))

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> Message:
        self._check_changes()
        await inventory.load(self._serving, request.model_name, dict(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> Message:
        self._check_changes()
        await inventory.unload(self._serving, request.model_name, dict(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    def _check_changes(self) -> None:
        if self._serving.settings.admin_port is not None:
            raise Forbidden("models are loaded and unloaded over HTTP on the admin port")


class _KeyCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without a key. Inference calls pass: `InferenceCall` refuses and counts them."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        if details.method != f"/{INFER}":
            try:
                self._keys.check(headers_of(details.invocation_metadata).get(b"authorization"))
            except RequestError as error:
                return _refusing(error)
        handler: grpc.RpcMethodHandler[Any, Any] = await continuation(details)
        return handler


class _SmallCalls(grpc.aio.ServerInterceptor):
    """Calls other than inference: their messages are small, and received when there is memory for them.

    Attributes:
        begun: How many calls of any kind have begun.
    """

    def __init__(self, receiving: Receiving, serving: Serving) -> None:
        self._receiving = receiving
        self._serving = serving
        self._streams = asyncio.Semaphore(MAX_STREAMS)
        self.begun = 0

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        self.begun += 1
        handler = await continuation(details)
        if handler is None or details.method == f"/{INFER}":
            return handler
        if handler.request_streaming:  # reflection's: one message after another, without a limit of time
            return grpc.stream_stream_rpc_method_handler(
                partial(self._stream, handler), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            answer = partial(self._answer, handler.unary_stream, handler.request_deserializer)
            return grpc.stream_stream_rpc_method_handler(answer, None, handler.response_serializer)
        answer = partial(self._answer, handler.unary_unary, handler.request_deserializer)
        return grpc.stream_unary_rpc_method_handler(answer, None, handler.response_serializer)

    async def _answer(
        self,
        answer: Callable[[Any, Context], Awaitable[Any]],
        deserialized: Callable[[bytes], Any] | None,
        _: object,
        context: Context,
    ) -> Any:
        """Receives the one message of a call, and answers it."""
        hold = Hold(self._serving.inflight)
        try:
            seconds = self._serving.settings.default_timeout_ms / 1000
            async with self._receiving.one(hold, time.monotonic() + seconds):
                body = await context.read()
            if isinstance(body, bytes) and len(body) > LARGE_BODY_BYTES:
                raise too_large(LARGE_BODY_BYTES)
            if not isinstance(body, bytes):
                raise InvalidRequest([Problem("", "the call has no message")])
        except RequestError as error:
            refuse(context, error.with_traceback(None))
            return None
        finally:
            hold.close()
        return await answer(body if deserialized is None else deserialized(body), context)

    async def _stream(self, handler: Any, messages_sent: Any, context: Context) -> None:
        """Answers a stream of requests; few are open at once."""
        if self._streams.locked():
            refuse(context, InflightFull("too many streams are open", retry_after_seconds=1))
            return
        async with self._streams:
            async for response in handler.stream_stream(messages_sent, context):
                await context.write(response)


class _Health(health.aio.HealthServicer):
    """gRPC's health service: a check answers with the current status, and clients that watch get it by `report`."""

    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self._serving = serving

    async def report(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if self._serving.ready else statuses.NOT_SERVING
        for service in ("", SERVICE):
            await self.set(service, status)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        await self.report()
        return await super().Check(request, context)


def _answering(
    kind: type[Message], answer: Callable[[Any], Message | Awaitable[Message]]
) -> Callable[[bytes, Context], Awaitable[Message | None]]:
    """A handler of calls other than inference. They are not counted, and their messages are small."""

    async def handle(body: bytes, context: Context) -> Message | None:
        try:
            message = answer(grpc_codec.parsed(kind, body))
            return message if isinstance(message, Message) else await message
        except RequestError as error:
            refuse(context, error.with_traceback(None))
            return None

    return handle


def _refusing(error: RequestError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that refuses calls of any kind without receiving their messages."""

    async def handle(_: Any, context: Context) -> None:
        refuse(context, error)

    return grpc.stream_stream_rpc_method_handler(handle)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """The certificates of `serve`, or None where it serves without TLS."""
    if settings.tls_cert_file is None:
        return None
    chain = _read(settings.tls_cert_file)
    key = chain if settings.tls_key_file is None else _read(settings.tls_key_file)
    authorities = None if settings.tls_client_ca_file is None else _read(settings.tls_client_ca_file)
    return grpc.ssl_server_credentials([(key, chain)], authorities, authorities is not None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the TLS file {path} cannot be read: {error.strerror}") from error
