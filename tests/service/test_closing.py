"""How a connection ends: what was written arrives, whatever the client does at that moment."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from lengthwise.connections import closing
from lengthwise.connections.closing import gently

ANSWER = b"an answer" * 1000


def on_both_loops(scene: Callable[[pytest.MonkeyPatch], Coroutine[Any, Any, None]]) -> Any:
    """A test that runs a scene on either event loop."""

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def test(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(scene(monkeypatch))

    return test


class Answering(asyncio.Protocol):
    """Answers the first bytes and closes; what comes after them is none of its business."""

    answer = ANSWER

    def __init__(self) -> None:
        self.read = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = gently(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self.read += 1
        self.transport.write(self.answer)
        self.transport.close()
        self.transport.close()
        self.transport.write(b"too late")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[Answering, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to it."""
    made: list[Answering] = []

    def make() -> Answering:
        made.append(Answering())
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"a request")
        while not (made and made[0].read):
            await asyncio.sleep(0)
        yield made[0], reader, writer
        writer.close()


@on_both_loops
async def test_an_answer_arrives_though_its_client_is_still_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering() as (protocol, reader, writer):
        for _ in range(10):
            writer.write(b"x" * 100_000)
            await writer.drain()
        assert await reader.read() == ANSWER
        assert not protocol.lost.done()
        writer.close()
        await protocol.lost
        assert protocol.read == 1


@on_both_loops
async def test_a_client_that_does_not_end_its_side_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.01)
    async with answering() as (protocol, reader, _):
        await protocol.lost
        assert await reader.read() == ANSWER


@on_both_loops
async def test_a_client_that_goes_on_and_on_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 600)
    monkeypatch.setattr(closing, "LINGER_BYTES", 1000)
    async with answering() as (protocol, _, writer):
        writer.write(b"x" * 2000)
        await protocol.lost


@on_both_loops
async def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_SECONDS", 0.0)
    much = bytes(20_000_000)  # more than the sockets' buffers
    monkeypatch.setattr(Answering, "answer", much)
    async with answering() as (protocol, reader, _):
        assert protocol.transport.get_write_buffer_size() > 0
        assert protocol.transport.is_closing()
        for _ in range(100):  # turns in which it would be late, if it had read everything
            await asyncio.sleep(0)
        assert await reader.readexactly(len(much)) == much
        assert await reader.read() == b""
        await protocol.lost


@on_both_loops
async def test_a_connection_that_is_lost_meanwhile_is_lost_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering() as (protocol, _, writer):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()
        await protocol.lost
        protocol.transport.abort()
