"""How long honest callers wait while a server is attacked, over HTTP and gRPC. `python -m benchmarks.attacks`.

Each attack runs in a process of its own, by sockets and frames by hand, and goes on until both callers have asked for
some seconds, one request after another. One request that fails is counted; none is left out of the times.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click
import grpc
import httpx2
import numpy as np
import orjson

from benchmarks import machine, pages
from lengthwise.bench import launch
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import SERVICE
from tests.support import http2

PAGE = pages.RESULTS / "attacks.md"
STEPS: Final = np.full((1, 15, 12), 0.5, dtype="<f4")
INFER: Final = f"/{SERVICE}/ModelInfer"
STREAM: Final = f"/{SERVICE}/ModelStreamInfer"
CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
_PAUSE_SECONDS: Final = 0.02
_BETWEEN_SECONDS: Final = 0.05

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: bytes) -> None:
    """Sends that, and then nothing until the server ends the connection."""
    writer.write(words)
    while await reader.read(65_536):
        pass


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body that arrives byte by byte."""
    writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(_BETWEEN_SECONDS)


async def calls(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, each: int, body: bytes | None, reset: bool
) -> None:
    """So many calls at once on a connection, each again when it has ended; or reset as soon as it has begun."""
    writer.write(http2.preface())
    stream = -1

    def begin() -> None:
        nonlocal stream
        stream += 2
        writer.write(http2.call(path, stream) + (b"" if body is None else http2.data(stream, body)))
        if reset:
            writer.write(http2.frame(http2.RESET, 0, stream, struct.pack(">I", 8)))

    for _ in range(each):
        begin()
    while True:
        head = await reader.readexactly(9)
        kind, flags, of = struct.unpack(">BBI", head[3:])
        payload = await reader.readexactly(int.from_bytes(head[:3]))
        if kind in (http2.SETTINGS, http2.PING) and not flags & http2.ACK:
            writer.write(http2.frame(kind, http2.ACK, 0, payload if kind == http2.PING else b""))
            for _ in range(each if reset else 0):
                begin()
        elif of and (kind == http2.RESET or flags & http2.END_STREAM):
            await asyncio.sleep(_BETWEEN_SECONDS)
            begin()
        await writer.drain()


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests on a stream, as many as the server takes, while no answer is ever read."""
    writer.write(http2.preface() + http2.call(STREAM, 1))
    requests = http2.frame(http2.DATA, 0, 1, http2.message(_packed()) * 15)
    while not writer.is_closing():
        writer.write(requests)
        await writer.drain()
        await asyncio.sleep(_BETWEEN_SECONDS)


def _packed() -> bytes:
    """An inference request, as it travels."""
    message = pb.ModelInferRequest(model_name="japanese-vowels", raw_input_contents=[STEPS.tobytes()])
    message.inputs.add(name="values", datatype="FP32", shape=STEPS.shape)
    return message.SerializeToString()


def _words(words: bytes) -> Act:
    return lambda reader, writer: say(reader, writer, words)


def _calls(path: str, each: int, body: bytes | None = None, *, reset: bool = False) -> Act:
    return lambda reader, writer: calls(reader, writer, path, each, body, reset)


ATTACKS: Final[dict[str, tuple[str, int, Act]]] = {
    "HTTP: silent connections": ("http", 300, _words(b"")),
    "HTTP: half a head": ("http", 300, _words(b"POST /predict HTTP/1.1\r\nx: ")),
    "HTTP: bodies byte by byte": ("http", 300, trickle),
    "HTTP: what is no request": ("http", 50, _words(b"nonsense\r\n\r\n")),
    "gRPC: silent connections": ("grpc", 300, _words(b"")),
    "gRPC: the preface only": ("grpc", 300, _words(http2.preface())),
    "gRPC: 100 silent calls on one connection": ("grpc", 1, _calls(INFER, 100)),
    "gRPC: 500 silent calls on 50 connections": ("grpc", 50, _calls(INFER, 10)),
    "gRPC: 4,800 silent calls on 48 connections": ("grpc", 48, _calls(INFER, 100)),
    "gRPC: 1,000 silent health checks": ("grpc", 10, _calls(CHECK, 100)),
    "gRPC: 4,800 watches": ("grpc", 48, _calls(WATCH, 100, http2.message(b""))),
    "gRPC: 4,800 silent streams on 48 connections": ("grpc", 48, _calls(STREAM, 100)),
    "gRPC: 40 streams of requests, no answer read": ("grpc", 40, flood),
    "gRPC: messages that are none": ("grpc", 4, _calls(CHECK, 10, http2.message(b"\xff\xff"))),
    "gRPC: calls reset at once": ("grpc", 4, _calls(INFER, 50, reset=True)),
}
"""By name: the door, how many connections there are at once, and what each of them does."""


def attack(name: str, port: int) -> None:
    """Attacks a port until the process is ended."""
    _, connections, act = ATTACKS[name]

    async def again() -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    await act(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(_BETWEEN_SECONDS)

    async def all_of_them() -> None:
        await asyncio.gather(*[again() for _ in range(connections)])

    asyncio.run(all_of_them())


@contextmanager
def attacked(name: str | None, port: int) -> Iterator[None]:
    """Attacks while the block runs; the first second is over when it begins."""
    if name is None:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=attack, args=(name, port), daemon=True)
    process.start()
    try:
        process.join(3.0)  # starts Python, and opens its connections
        yield
    finally:
        process.kill()
        process.join()


class Caller:
    """An honest caller, and how long its calls took; `ask` makes one, and raises if it fails."""

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self._ask = ask
        self.seconds: list[float] = []
        self.failed = 0

    async def run(self, seconds: float) -> None:
        """Asks again and again, for so long."""
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            try:
                await self._ask()
            except (httpx2.HTTPError, grpc.aio.AioRpcError):
                self.failed += 1
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(_PAUSE_SECONDS)

    def cells(self) -> list[str]:
        """Calls, those that failed, the median and p99."""
        middle, late = np.percentile(self.seconds, [50, 99]) * 1000
        return [str(len(self.seconds)), str(self.failed), f"{middle:.1f}", f"{late:.0f}"]


async def measured(url: str, grpc_port: int, seconds: float) -> list[str]:
    """What both callers saw."""
    body = orjson.dumps({"sequences": STEPS.tolist()})
    packed = _packed()
    async with (
        httpx2.AsyncClient(base_url=url, trust_env=False, timeout=15) as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):

        async def over_http() -> None:
            headers = {"content-type": "application/json"}
            (await client.post("/predict", content=body, headers=headers)).raise_for_status()

        callers = [Caller(over_http), Caller(lambda: channel.unary_unary(INFER)(packed, timeout=15))]
        await asyncio.gather(*[caller.run(seconds) for caller in callers])
    return callers[0].cells() + callers[1].cells()


def line(name: str | None, seconds: float) -> list[str]:
    """A line of the table: one attack on a server of its own."""
    port, grpc_port = (launch.free_port() for _ in range(2))
    options = {"grpc_port": str(grpc_port), "log_level": "warning", "header_timeout_seconds": "3"}
    with launch.running(launch.serve_command(None, port, options), port):
        wait_for(grpc_port)
        door = grpc_port if name is not None and ATTACKS[name][0] == "grpc" else port
        with attacked(name, door):
            return [name or "none", *asyncio.run(measured(f"http://127.0.0.1:{port}", grpc_port, seconds))]


def wait_for(port: int) -> None:
    """Returns once a port is listened on."""
    while True:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="How long the callers ask during each attack.")
@click.option("--out", type=click.Path(path_type=Path), default=PAGE, help="Where the page goes.")
@click.option("--attack", "only", type=click.Choice(list(ATTACKS)), multiple=True, help="Only this one, and no page.")
def main(seconds: float, out: Path, only: tuple[str, ...]) -> None:
    """Measures every attack."""
    if only:
        for name in only:
            click.echo(" | ".join(line(name, seconds)))
        return
    pages.require_clean(out)
    facts = machine.facts()
    heads = [
        "attack",
        "HTTP: calls",
        "failed",
        "median, ms",
        "p99, ms",
        "gRPC: calls",
        "failed",
        "median, ms",
        "p99, ms",
    ]
    lines = []
    for name in (None, *ATTACKS):
        lines.append(line(name, seconds))
        click.echo(" | ".join(lines[-1]))
    said = "Two honest callers, over HTTP and over gRPC, on kept connections, while a server is attacked. Times in ms."
    pages.write(out, pages.page(facts, "Honest callers during attacks", said, pages.table(heads, lines)))


if __name__ == "__main__":
    main()
