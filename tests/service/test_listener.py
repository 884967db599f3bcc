"""Taking connections: what is counted, who makes room for whom, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.connections import listener as listeners
from lengthwise.connections.listener import LEAST_IDLE_SECONDS, REJECTED, KeptAlive, Listener, listening
from lengthwise.errors import ConfigurationError
from tests.support import proc
from tests.support.doors import certificate
from tests.support.server_process import PATIENCE_SECONDS, request, started

GOOD = {"sequences": [[[0.5] * 12]]}
FILES = 200


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return certificate(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def silent(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)) for _ in range(number)
        ]


def test_silent_connections_take_neither_the_files_nor_the_handshakes_of_others(
    trusting: tuple[Path, ssl.SSLContext],
) -> None:
    path, context = trusting
    admin_port = free_port()
    options = ("--max-connections", "20", "--header-timeout-seconds", "600", "--admin-port", str(admin_port))
    with started(*options, "--tls-cert-file", str(path), verify=context, files=FILES) as server:
        at_rest = proc.open_files(server.process.pid)
        with silent(server.port, FILES), silent(admin_port, FILES):
            for _ in range(3):  # silence does not end by itself in this test
                assert server.predict(GOOD).status_code == 200
                assert httpx.get(f"https://localhost:{admin_port}/metrics", verify=context).status_code == 200
            assert proc.open_files(server.process.pid) <= at_rest + 20 + 32 + 2 * REJECTED + 4
        assert "no connection can be accepted" not in server.text


@pytest.mark.long
def test_a_handshake_has_the_time_of_a_head(trusting: tuple[Path, ssl.SSLContext]) -> None:
    path, context = trusting
    options = ("--header-timeout-seconds", "0.5", "--tls-cert-file", str(path))
    with started(*options, verify=context) as server, silent(server.port, 1) as (one,):
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""  # uvloop's own bound is a minute, this socket's patience less
        assert server.predict(GOOD).status_code == 200


def test_callers_past_the_most_are_told(trusting: tuple[Path, ssl.SSLContext]) -> None:
    with started("--max-connections", "1", "--header-timeout-seconds", "600") as server:
        with silent(server.port, 1) as (first,), contextlib.ExitStack() as stack:
            first.sendall(request(GOOD)[:-1])
            for _ in range(REJECTED + 20):
                wire = stack.enter_context(server.connect())
                status, headers, _ = wire.answer()
                assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.predict(GOOD).status_code != 200:  # that they have left is news to the server
            assert time.monotonic() < deadline


class Greeting(asyncio.Protocol):
    """Says a word to each, and ends."""

    connections: set[Greeting]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")  # type: ignore[attr-defined]
        transport.close()


async def test_whoever_was_on_the_way_in_when_it_closes_is_served() -> None:
    with listening("127.0.0.1", 0, "--port") as taken, contextlib.ExitStack() as stack:
        listener = Listener(taken, most=100, tls=None, handshake_seconds=1)
        address = taken.getsockname()
        # The kernel has them, the event loop has not had its turn.
        waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(50)]
        for one in waiting:
            one.sendall(b"a request that nobody reads")
        listener.start(Greeting, ())
        await listener.close()
        for one in waiting:
            assert await asyncio.to_thread(one.recv, 9) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


async def test_nobody_is_rejected_while_there_are_idle_connections() -> None:
    class Idle:
        def give_way(self) -> bool:
            return True

    idle = KeptAlive()
    idle[Idle()] = asyncio.get_running_loop().time() - LEAST_IDLE_SECONDS
    with listening("127.0.0.1", 0, "--port") as taken, contextlib.ExitStack() as stack:
        listener = Listener(taken, most=3, tls=None, handshake_seconds=1)
        listener.start(Greeting, range(3 + REJECTED), idle)
        for expected in (b"hello", b"HTTP/1.1 503"):
            one = stack.enter_context(socket.create_connection(taken.getsockname()))
            assert (await asyncio.to_thread(one.recv, 100)).startswith(expected)
        await listener.close()


async def test_nobody_is_let_in_while_it_closes_only_to_be_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "ARRIVING_SECONDS", 1.0)
    with listening("127.0.0.1", 0, "--port") as taken:
        listener = Listener(taken, most=100, tls=None, handshake_seconds=1)
        listener.start(Greeting, ())
        closing = asyncio.create_task(listener.close())
        await asyncio.sleep(0)
        late = asyncio.create_task(asyncio.open_connection(*taken.getsockname()))
        await closing
        with pytest.raises(ConnectionRefusedError):  # and not let in, and then reset
            await late


async def test_it_goes_on_when_there_are_files_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "NO_FILES_SECONDS", 0.01)

    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    with Exhausted() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken.setblocking(False)
        listener = Listener(taken, most=100, tls=None, handshake_seconds=1)
        listener.start(Greeting, ())
        reader, writer = await asyncio.open_connection(*taken.getsockname())
        assert await reader.read() == b"hello"
        writer.close()
        await listener.close()
    assert caplog.text.count("no connection can be accepted: Too many open files") == 2


@pytest.mark.long
def test_few_files_do() -> None:
    with started(files=32) as server:
        assert server.predict(GOOD).status_code == 200


def test_a_name_that_is_no_address_is_told_what_host_means() -> None:
    with pytest.raises(ConfigurationError), listening("no-such-host.invalid", 0, "--port"):
        pass
