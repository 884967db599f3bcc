"""The gRPC server of the Open Inference Protocol: the same calls as `v2`, the same batcher, and what bounds them.

A message is received when there is memory for it: gRPC receives one only on request, and `receiving` decides when.
This package alone knows gRPC: calls and their events are in `transport`, inference in `infer` and `stream`, other calls
in `calls`, connections in `connections`. It needs the extra `grpc`, so it is imported only where a port for it is set.

| what | bound |
|---|---|
| connections | `max_connections`; further ones are closed |
| a handshake, and the time until the first call | `RequestLimits.header_seconds` |
| a connection without a call | `keep_alive_seconds`, or less when others need its slot  |
| a connection in all | `_AGE_SECONDS`, and then `_LAST_CALLS_SECONDS` for its calls |
| a client that is not there any more | `_PING_SECONDS`, and `PATIENCE_SECONDS` to answer the ping |
| pings of a client | one in `_CLIENT_PING_SECONDS`, with or without calls |
| calls of a connection, and of all | `_CALLS_OF_A_CONNECTION`, `MAX_CALLS` |
| a message, inflated too | `RequestLimits.body_bytes`; received with memory for it |
| metadata | gRPC's own 16 KiB, and `RequestLimits.fields` |
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Final

import grpc

from lengthwise.connections.unread import PATIENCE_SECONDS
from lengthwise.errors import ConfigurationError, RequestError
from lengthwise.grpc import infer
from lengthwise.grpc.calls import SmallCalls
from lengthwise.grpc.connections import GrpcConnections
from lengthwise.grpc.receiving import Receiving
from lengthwise.grpc.stream import StreamInference
from lengthwise.grpc.transport import Handler, RpcCall, RpcServer
from lengthwise.protocols.turns import Turns
from lengthwise.serving import Serving
from lengthwise.settings import Settings

log = logging.getLogger("lengthwise.grpc")

MAX_CALLS: Final = 8192  # at once, over all connections; further ones are refused unread
_CALLS_OF_A_CONNECTION: Final = 100
_WINDOW_BYTES: Final = 65_535  # of a message that a client may send before it is received: HTTP/2's default
_AGE_SECONDS: Final = 3600
_LAST_CALLS_SECONDS: Final = 120
_PING_SECONDS: Final = 60
# Between two pings of a client, with or without calls; more often is abuse, for which gRPC ends a connection. Clients
# send them every 10 seconds at most, and a busy network brings two closer together.
_CLIENT_PING_SECONDS: Final = 5
_LAST_ANSWERS_SECONDS: Final = 1.0  # that the last answers may take to be sent when the server stops
# How long calls that still come are refused before the server stops: from then on, gRPC cancels them instead, and a
# client does not ask again after that.
_LATE_CALLS_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 0.1  # when no call has come for so long, the server stops at once


class GrpcServer:
    """The gRPC server of a service; `large_bodies` and `max_connections` are those of all its protocols."""

    def __init__(self, serving: Serving, large_bodies: Turns, max_connections: int | None = None) -> None:
        limits = serving.request_limits
        self._serving = serving
        self._large_bodies = large_bodies
        self._max_connections = max_connections or serving.settings.max_connections
        self._connections = GrpcConnections(self._max_connections, limits.header_seconds)
        receiving = Receiving(serving.inflight, limits.body_bytes, self._connections.received_bytes)
        self._streams = StreamInference(
            infer.ModelInfer(serving, large_bodies, infer.STREAM), receiving, self._connections
        )
        self._calls = SmallCalls(serving, self._connections)
        # By path `/package.Service/Method`
        self._handlers: dict[str, Handler] = {
            f"/{infer.INFER}": partial(infer.answer, infer.ModelInfer(serving, large_bodies, infer.INFER), receiving),
            f"/{infer.STREAM}": self._streams.answer,
            **self._calls.handlers(),
        }
        self._begun = 0  # calls, with those that were refused
        self._server: RpcServer | None = None
        self._keeping: asyncio.Task[None] | None = None  # ends connections that stay too long

    async def start(self, host: str, port: int) -> int:
        """Binds the port and accepts calls; until a model is ready, its calls are refused. Returns the bound port.

        `port` 0 takes any free one.

        Raises:
            ConfigurationError: The server cannot listen on the address, or a TLS file cannot be read.
        """
        settings, limits = self._serving.settings, self._serving.request_limits
        server = RpcServer(
            _options(settings, self._max_connections), limits.body_bytes, self._begin, self._large_bodies
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound_port = server.listen(address, _credentials(settings))
        except RuntimeError:
            bound_port = 0
        if bound_port == 0:
            raise ConfigurationError(f"cannot listen on {address} for gRPC; another --grpc-port may be free")
        server.start()
        self._server = server
        # What `/metrics` reports of connections and streams
        openings = self._serving.openings
        openings.connections["grpc"] = (lambda: self._connections.count, self._max_connections)
        openings.streams = lambda: {
            "call": self._connections.calls,
            "infer": self._streams.open,
            **self._calls.streams,
        }
        self._keeping = asyncio.create_task(self._connections.keep(bound_port))
        log.info("listening on grpc://%s", address if port else f"{host}:{bound_port}")
        return bound_port

    async def report_health(self) -> None:
        """Sends the health of the server to the clients that watch it."""
        self._calls.health.report()

    async def stop(self) -> None:
        """Ends every connection, once the accepted calls are answered and those that still come are refused."""
        self._calls.health.end()
        self._streams.end()
        if self._server is not None and self._keeping is not None:
            # Until no call has come for `_QUIET_SECONDS`
            end, begun_before = time.monotonic() + _LATE_CALLS_SECONDS, -1
            while self._begun != begun_before and time.monotonic() < end:
                begun_before = self._begun
                await asyncio.sleep(_QUIET_SECONDS)
            await self._server.stop(_LAST_ANSWERS_SECONDS)
            self._keeping.cancel()

    def _begin(self, rpc: RpcCall) -> None:
        """Starts the handler of a call; or refuses the call, and does not receive its message."""
        self._begun += 1
        handler = self._handlers.get(rpc.method)
        if self._connections.calls >= MAX_CALLS:
            rpc.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are open")
        elif len(rpc.metadata) > self._serving.request_limits.fields:
            rpc.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a call may have {self._serving.request_limits.fields} fields of metadata",
            )
        elif (refusal := self._refusal_for_key(rpc)) is not None:
            infer.refuse_unread(rpc, refusal)
        elif handler is None:
            rpc.finish(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
        else:
            self._connections.count_call(rpc)
            rpc.run(handler)

    def _refusal_for_key(self, rpc: RpcCall) -> RequestError | None:
        """The refusal of a call that has no valid key; None if it may pass.

        Inference calls pass: `InferenceCall.admit` checks their keys, so that refused ones are counted.
        """
        if rpc.method not in (f"/{infer.INFER}", f"/{infer.STREAM}"):
            try:
                self._serving.check_key(infer.headers_of(rpc.metadata))
            except RequestError as error:
                return error.with_traceback(None)
        return None


def _options(settings: Settings, max_connections: int) -> list[tuple[str, int]]:
    """The options of gRPC's core: the bounds of the module's table that it keeps itself."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int((settings.workers or 1) > 1)),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_concurrent_streams", _CALLS_OF_A_CONNECTION),
        ("grpc.server.max_pending_requests", MAX_CALLS),  # past it gRPC drops calls at random
        ("grpc.server.max_pending_requests_hard_limit", MAX_CALLS),
        ("grpc.server_handshake_timeout_ms", round(settings.header_timeout_seconds * 1000)),
        ("grpc.max_connection_idle_ms", settings.keep_alive_seconds * 1000),
        ("grpc.max_connection_age_ms", _AGE_SECONDS * 1000),
        ("grpc.max_connection_age_grace_ms", _LAST_CALLS_SECONDS * 1000),
        ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", round(PATIENCE_SECONDS * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _CLIENT_PING_SECONDS * 1000),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),  # it would let each client send megabytes ahead
    ]


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """The certificates that `serve` was given; None without TLS.

    Raises:
        ConfigurationError: A TLS file cannot be read.
    """
    if settings.tls_cert_file is None:
        return None
    try:
        chain = settings.tls_cert_file.read_bytes()
        key = chain if settings.tls_key_file is None else settings.tls_key_file.read_bytes()
        authorities = None if settings.tls_client_ca_file is None else settings.tls_client_ca_file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the TLS file {error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials([(key, chain)], authorities, authorities is not None)
