"""gRPC's health service: whether this server serves, for who asks once and for who watches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2

from lengthwise.connections.unread import PATIENCE_SECONDS
from lengthwise.protocols.grpc_transport import RpcCall
from lengthwise.serving import Serving

NAME = "grpc.health.v1.Health"
Status = health_pb2.HealthCheckResponse


class Health:
    """The health of the server, which is that of each of its services.

    Args:
        serving: The service.
        names: The services that may be asked for, besides the server itself, whose name is empty.
    """

    def __init__(self, serving: Serving, names: Iterable[str]) -> None:
        self._serving = serving
        self._names = frozenset(("", *names))
        self._ended = False
        self._told = self.status("")
        self._changed = asyncio.Event()

    def status(self, service: str) -> int:
        """The status of a service now."""
        if service not in self._names:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._serving.ready and not self._ended else Status.NOT_SERVING

    def report(self) -> None:
        """Tells those who watch if the status has changed."""
        status = self.status("")
        if status != self._told:
            self._told = status
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def end(self) -> None:
        """The server stops: from now on it does not serve."""
        self._ended = True
        self.report()

    def check(self, request: health_pb2.HealthCheckRequest, rpc: RpcCall) -> Status | None:
        """Answers who asks once."""
        self.report()
        status = self.status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            rpc.finish(grpc.StatusCode.NOT_FOUND)
            return None
        return _response(status)

    async def watch(self, request: health_pb2.HealthCheckRequest, rpc: RpcCall) -> None:
        """Sends the status, and again whenever it has changed, until the client leaves or does not read."""
        last = None
        while True:
            changed, status = self._changed, self.status(request.service)
            if status != last:
                last = status
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await rpc.sent(_response(status).SerializeToString())
                except TimeoutError:
                    raise asyncio.CancelledError from None  # gRPC resets the stream
            await changed.wait()


def _response(status: int) -> Status:
    return Status(status=Status.ServingStatus.Name(status))
