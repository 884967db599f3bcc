"""Clients that do not read what they asked for: they lose their connections, and nobody else does."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lengthwise.connections.draining import UNREAD_SECONDS
from lengthwise.connections.unread import PATIENCE_SECONDS
from tests.hostile.watched import GOOD, KEY, MEBIBYTE, STEP, narrow, stuff, unharmed, until
from tests.support import proc
from tests.support.server_process import ServerProcess, request, started

pytestmark = pytest.mark.long

MOST = 5
WAYS = {
    "past ASGI": request(GOOD, authorization=f"Bearer {KEY}"),
    "without a key": request(GOOD),
    "through ASGI": request({"sequences": [[STEP]] * 1024}, origin="http://x", authorization=f"Bearer {KEY}"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    with started("--api-keys-file", str(keys), "--max-connections", str(MOST)) as process:
        yield process


@pytest.mark.parametrize("piece", WAYS.values(), ids=WAYS.keys())
def test_whoever_does_not_read_loses_the_connection_and_others_get_it(server: ServerProcess, piece: bytes) -> None:
    files = proc.open_files(server.process.pid)
    with ExitStack() as stack:
        wires = [stack.enter_context(narrow(server.port)) for _ in range(MOST)]
        for wire in wires:
            stuff(wire, piece)  # until nothing moves
        began = time.monotonic()
        until(lambda: answered(server), "no place is free", 3 * PATIENCE_SECONDS + 30)
        print(f"served again after {time.monotonic() - began:.1f} s")
    until(lambda: proc.open_files(server.process.pid) <= files, "files stay open")


def answered(server: ServerProcess) -> bool:
    """Whether somebody else is served."""
    with server.connect() as wire:
        wire.send(request(GOOD, authorization=f"Bearer {KEY}"))
        return wire.answer()[0] == 200


def test_whoever_does_not_read_does_not_hold_the_exit(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(MOST):
            stuff(stack.enter_context(narrow(server.port)), WAYS["past ASGI"])
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        print(f"ended after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 7 * UNREAD_SECONDS


def test_the_memory_of_large_answers_that_nobody_reads_is_let_go_of() -> None:
    large = {"sequences": [[[0.5] * 12]] * 1024, "outputs": ["attention"]}
    with started() as server, unharmed(server, growth_bytes=128 * MEBIBYTE, longest_seconds=20), ExitStack() as stack:
        wires = [stack.enter_context(narrow(server.port)) for _ in range(20)]
        before = proc.resident_bytes(server.process.pid)
        for wire in wires:
            stuff(wire, request(large))
        held = proc.resident_bytes(server.process.pid)
        print(f"held {(held - before) / MEBIBYTE:.1f} MiB")
        for wire in wires:  # each is cut off: what it has not read does not come
            until(lambda wire=wire: ended(wire.socket), "the connection stays", 3 * PATIENCE_SECONDS + 30)


def ended(connection: socket.socket) -> bool:
    """Whether the peer has ended a connection of which nothing is read."""
    established = 1  # the first byte of TCP_INFO is the state
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != established
