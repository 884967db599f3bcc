"""A service behind a socket, and connections that send requests byte by byte."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

from lengthwise.connections.listener import KeepAlive
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.processes.server import protocol
from lengthwise.runtime.manifest import Manifest
from tests.support.numpy_models import Service, held_batch, manifest, model, serving

GOOD = orjson.dumps({"sequences": [[[1, 3]]]})
UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
CHUNKED = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
V1 = "/v1/models/sums:predict"
KEY = "a-key-of-sixteen-or-more"
BEARER = {"authorization": f"Bearer {KEY}"}


@dataclass
class Line:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(
        self, body: bytes, *headers: str, method: str = "POST", path: str = "/predict", version: str = "1.1"
    ) -> None:
        lines = [f"{method} {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(180):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, body: bytes, *headers: str, **options: Any) -> tuple[int, dict[str, str], bytes]:
        self.send(body, *headers, **options)
        return await self.answer()


class Net:
    """A service behind a socket; counts what came by ASGI."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.by_asgi = 0
        self.state = uvicorn.server.ServerState()
        self.port = 0
        self.lines: list[Line] = []

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.by_asgi += 1
        await self.service.app(scope, receive, send)

    async def line(self) -> Line:
        line = Line(*await asyncio.open_connection("127.0.0.1", self.port))
        self.lines.append(line)
        return line


@asynccontextmanager
async def net(service: Service, *, direct: bool = True, most: int = 100, **settings: Any) -> AsyncIterator[Net]:
    """The service behind a socket with so many places and other settings, with the way past ASGI or without."""
    made = Net(service)
    changed = service.serving.settings.model_copy(update=settings)
    application = service.app if direct else made.asgi
    bounded: Any = partial(protocol(application, RequestLimits.of(changed), most), keep_alive=KeepAlive())
    config = uvicorn.Config(
        made.asgi, http=bounded, interface="asgi3", lifespan="off", log_config=None, ws="none", server_header=False
    )
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: bounded(config=config, server_state=made.state, app_state={}), "127.0.0.1", 0
    )
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for line in made.lines:
            line.writer.close()
            with suppress(ConnectionError):
                await line.writer.wait_closed()
        for connection in list(made.state.connections):
            connection.transport.abort()
        await server.wait_closed()


@asynccontextmanager
async def held(
    rules: Manifest | None = None, **options: Any
) -> AsyncIterator[tuple[Net, threading.Event, asyncio.Event]]:
    """A service whose only runner waits in each batch for `release`; `running` says when it got there."""
    release, running, wait = held_batch()
    async with serving(model(rules or manifest(), wait), **options) as service, net(service) as made:
        try:
            yield made, release, running
        finally:
            release.set()


def request(way: str, *headers: str, body: bytes | None = None) -> bytes:
    """A good inference call."""
    path = V1 if way == "v1" else "/predict"
    if body is None:
        body = orjson.dumps({"instances": [[[1, 3]]]}) if way == "v1" else GOOD
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    if way == "asgi":
        lines.append("origin: http://x")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def path_of(way: str) -> bytes:
    return V1.encode() if way == "v1" else b"/predict"


def chunked(way: str, trailers: bytes = b"", *, end: bytes = b"\r\n") -> bytes:
    """A good inference call whose body is one chunk, with trailers."""
    body = orjson.dumps({"instances": [[[1, 3]]]}) if way == "v1" else GOOD
    return CHUNKED % path_of(way) + b"%x\r\n%s\r\n0\r\n" % (len(body), body) + trailers + end


async def rest_of(line: Line) -> bytes:
    """Everything until the connection ends."""
    async with asyncio.timeout(180):
        return await line.reader.read()
