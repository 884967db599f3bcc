"""Taking connections: what is counted, which idle ones make room for whom, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.connections import listener as listeners
from lengthwise.connections.listener import LEAST_IDLE_SECONDS, REFUSED, KeepAlive, Listener, listening
from lengthwise.errors import ConfigurationError
from tests.support import proc
from tests.support.doors import certificate
from tests.support.http_lines import GOOD as BODY
from tests.support.http_lines import net, request, rest_of
from tests.support.numpy_models import Service
from tests.support.server_process import PATIENCE_SECONDS, started

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


@pytest.mark.long
@pytest.mark.process
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
                assert httpx2.get(f"https://localhost:{admin_port}/metrics", verify=context).status_code == 200
            assert proc.open_files(server.process.pid) <= at_rest + 20 + 32 + 2 * REFUSED + 4
        assert "no connection can be accepted" not in server.text


class Greeting(asyncio.Protocol):
    """Says a word to each, and ends."""

    connections: set[Greeting]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")  # type: ignore[attr-defined]
        transport.close()


async def test_whoever_was_on_the_way_in_when_it_closes_is_served() -> None:
    with listening("127.0.0.1", 0, "--port") as taken, contextlib.ExitStack() as stack:
        listener = Listener(taken, max_connections=100, tls=None, handshake_seconds=1)
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


class Kept(asyncio.Protocol):
    """Stays, and counts."""

    def __init__(self, connections: list[object]) -> None:
        connections.append(self)


async def take(taken: list[object], number: int, turn: Callable[[int, int], float]) -> None:
    """Takes a number of connections that wait at a listener which asks `turn` whether it is its own."""
    with listening("127.0.0.1", 0, "--port") as shared, contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(socket.create_connection(shared.getsockname()))
        listener = Listener(shared, max_connections=1000, tls=None, handshake_seconds=1, accept_delay=turn)
        listener.start(partial(Kept, taken), taken)
        while len(taken) < number:
            await asyncio.sleep(0.001)
        await listener.close()


async def test_of_a_burst_it_takes_no_more_than_others_that_keep_up() -> None:
    taken: list[object] = []
    others, ahead = 0, 0

    def turn(connections: int, _waiting: int) -> float:
        nonlocal ahead
        ahead = max(ahead, connections - others)
        if connections <= others:
            return 0.0
        asyncio.get_running_loop().call_soon(others_take)
        return 0.001

    def others_take() -> None:
        nonlocal others
        others = max(others, len(taken))

    await take(taken, 100, turn)
    assert ahead == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how many wait")
async def test_whose_turn_it_is_follows_from_how_many_wait() -> None:
    taken: list[object] = []
    seen: list[tuple[int, int]] = []

    def turn(connections: int, waiting: int) -> float:
        seen.append((connections, waiting))
        return 0.0

    await take(taken, 3, turn)
    assert seen[:4] == [(0, 3), (1, 2), (2, 1), (3, 0)]


async def test_what_others_do_not_take_is_taken() -> None:
    taken: list[object] = []
    await take(taken, 100, lambda *_: 0.001)
    assert len(taken) == 100


async def test_a_burst_is_taken_in_few_turns_of_the_event_loop_which_are_long_under_load() -> None:
    taken: list[object] = []
    with listening("127.0.0.1", 0, "--port") as shared, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(shared.getsockname()))
        listener = Listener(shared, max_connections=1000, tls=None, handshake_seconds=1)
        listener.start(partial(Kept, taken), taken)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(taken) + listener.pending == 200
        await listener.close()


async def test_nobody_is_rejected_while_there_are_idle_connections() -> None:
    with listening("127.0.0.1", 0, "--port") as taken, contextlib.ExitStack() as stack:
        listener = Listener(taken, max_connections=3, tls=None, handshake_seconds=1)
        listener.keep_alive[Idle()] = asyncio.get_running_loop().time() - LEAST_IDLE_SECONDS
        listener.start(Greeting, range(3 + REFUSED))
        told = []
        for _ in range(2):
            one = stack.enter_context(socket.create_connection(taken.getsockname()))
            told.append((await asyncio.to_thread(one.recv, 1000)).lower())
        assert told[0] == b"hello"
        assert told[1].startswith(b"http/1.1 503")
        assert b"\r\nretry-after: 1\r\n" in told[1]
        assert b"\r\nconnection: close\r\n" in told[1]
        await listener.close()


async def test_nobody_is_let_in_while_it_closes_only_to_be_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "ARRIVING_SECONDS", 1.0)
    with listening("127.0.0.1", 0, "--port") as taken:
        listener = Listener(taken, max_connections=100, tls=None, handshake_seconds=1)
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
        listener = Listener(taken, max_connections=100, tls=None, handshake_seconds=1)
        listener.start(Greeting, ())
        reader, writer = await asyncio.open_connection(*taken.getsockname())
        assert await reader.read() == b"hello"
        writer.close()
        await listener.close()
    assert caplog.text.count("no connection can be accepted: Too many open files") == 2


@pytest.mark.process
@pytest.mark.long
def test_few_files_do() -> None:
    with started(files=32) as server:
        assert server.predict(GOOD).status_code == 200


def test_a_name_that_is_no_address_is_told_what_host_means() -> None:
    with pytest.raises(ConfigurationError), listening("no-such-host.invalid", 0, "--port"):
        pass


# Between two requests


class Idle:
    """A connection; `busy` if its next request has begun, which nobody has seen yet."""

    def __init__(self, *, busy: bool = False) -> None:
        self.busy = busy
        self.ended = False

    def give_way(self) -> bool:
        self.ended = not self.busy
        return self.ended


def test_the_one_that_has_been_idle_longest_gives_way() -> None:
    idle, connections = KeepAlive(), [Idle() for _ in range(3)]
    for moment, connection in enumerate(connections):
        idle[connection] = float(moment)
    del idle[connections[0]]  # its next request came
    idle[connections[0]] = 3.0
    assert idle.make_room(100.0)
    assert [connection.ended for connection in connections] == [False, True, False]
    assert idle.make_room(100.0)
    assert idle.make_room(100.0)
    assert not idle.make_room(100.0)


def test_a_connection_that_was_just_used_or_has_a_request_is_not_closed() -> None:
    idle, busy, other = KeepAlive(), Idle(busy=True), Idle()
    idle[busy], idle[other] = 0.0, 1.0
    assert not idle.make_room(LEAST_IDLE_SECONDS - 0.1)
    assert idle.make_room(1.0 + LEAST_IDLE_SECONDS)
    assert (busy.ended, other.ended) == (False, True)


async def test_a_new_connection_gets_the_slot_of_an_idle_one(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "LEAST_IDLE_SECONDS", 0.0)
    async with net(service, most=1) as made:
        line = await made.line()
        for _ in range(2):
            assert (await line.ask(BODY))[0] == 200
        assert (await (await made.line()).ask(BODY))[0] == 200
        assert await rest_of(line) == b""  # it ended, and was not reset


@pytest.mark.parametrize("begun", [0, 9, -3])
async def test_a_connection_that_began_a_request_or_is_new_keeps_its_slot(
    service: Service, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LEAST_IDLE_SECONDS", 0.0)
    async with net(service, most=1) as made:
        line = await made.line()
        if begun:
            assert (await line.ask(BODY))[0] == 200
            line.writer.write(request("direct")[:begun])
        assert (await (await made.line()).answer())[0] == 503
        line.writer.write(request("direct")[begun:])
        assert (await line.answer())[0] == 200


@pytest.mark.process
@pytest.mark.long
def test_a_connection_without_requests_ends_after_the_time_that_was_set() -> None:
    with started("--keep-alive-seconds", "1") as server:
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        line.request("GET", "/livez")
        assert line.getresponse().read()
        assert line.sock.recv(1) == b""
        line.close()
