"""Trailers without an end, on every path and port, with a key and without, and malformed heads: they cost little."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import orjson
import pytest

from lengthwise.bench.launch import free_port
from tests.hostile.watched import GOOD, KEY, MEBIBYTE, unharmed
from tests.support.server_process import ServerProcess, Wire, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

AUTHORIZED = ("authorization", f"Bearer {KEY}")
MUCH = 40 * MEBIBYTE
ENDLESS = {
    "many trailers": (b"", b"a:b\r\n" * 4000),
    "one value": (b"a: ", b"a" * 20_000),
    "empty lines behind them": (b"\r\n", b"\r\n" * 10_000),
}
endless = pytest.mark.parametrize(("first", "piece"), ENDLESS.values(), ids=ENDLESS.keys())


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, admin_port: int) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    with started("--api-keys-file", str(keys), "--admin-port", str(admin_port)) as process:
        yield process


def opened(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "transfer-encoding: chunked", *headers, "", ""]
    body = orjson.dumps(GOOD)
    return "\r\n".join(lines).encode() + b"%x\r\n%s\r\n0\r\n" % (len(body), body)


def statuses(wire: Wire) -> list[int]:
    """Of all answers until the connection ends."""
    return [*iter(lambda: wire.answer()[0], 0)]


@pytest.mark.sampled(3)
@endless
@pytest.mark.parametrize(
    ("path", "where"),
    [
        *((path, "with a key") for path in ("/predict", "/v1/models/japanese-vowels:predict", "/livez", "/nowhere")),
        *(("/metrics", "with a key"), ("/predict", "without"), ("/metrics", "without"), ("/healthz", "admin")),
    ],
)
def test_trailers_without_an_end_are_cut_off(
    server: ServerProcess, admin_port: int, path: str, where: str, first: bytes, piece: bytes
) -> None:
    port = admin_port if where == "admin" else server.port
    with unharmed(server, AUTHORIZED), Wire(socket.create_connection(("127.0.0.1", port), 60)) as wire:
        wire.send(opened(path, *(["authorization: Bearer " + KEY] if where == "with a key" else [])) + first)
        with suppress(OSError):  # the server ends the connection
            for _ in range(MUCH // len(piece)):
                wire.send(piece)
        found = statuses(wire)  # it ends behind the refusal, or behind an answer that needed no body
        assert found[-1:] in ([], [431]) or found in ([200], [401], [404], [405])


@pytest.mark.long
def test_a_flood_of_malformed_requests_costs_little_and_writes_a_line_a_second(server: ServerProcess) -> None:
    said, began = len(server.text), time.monotonic()

    def malformed() -> None:
        with server.connect() as wire:
            wire.send(b"nonsense\r\n\r\n")
            assert statuses(wire) == [400]

    def told() -> bool:
        malformed()
        return "more since the last such line" in server.text[said:]

    with unharmed(server, AUTHORIZED):
        for _ in range(1500):
            malformed()
    wait_until(told, "no line says how many there were", 60)
    assert server.text[said:].count("malformed request") <= 2 + time.monotonic() - began
