"""Trailers without an end, on every path and port, with a key and without: they cost next to nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port
from tests.hostile.watched import KEY, MEBIBYTE, payload, push, unharmed
from tests.support.doors import certificate
from tests.support.server_process import ServerProcess, Wire, started

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
    return "\r\n".join(lines).encode() + b"%x\r\n%s\r\n0\r\n" % (len(payload()), payload())


def cut_off(wire: Wire) -> bool:
    """Whether the connection ends, behind the refusal or behind an answer that needed no body."""
    statuses = []
    while (status := wire.answer()[0]) != 0:
        statuses.append(status)
    return statuses[-1:] in ([], [431]) or statuses in ([200], [401], [404], [405])


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
        push(wire, piece, MUCH)
        assert cut_off(wire)


@pytest.mark.long
@endless
def test_trailers_without_an_end_are_cut_off_within_tls(tmp_path: Path, first: bytes, piece: bytes) -> None:
    path, context = certificate(tmp_path)
    with started("--tls-cert-file", str(path), verify=context) as server:

        def connect() -> Wire:
            plain = socket.create_connection(("127.0.0.1", server.port), 60)
            return Wire(context.wrap_socket(plain, server_hostname="localhost"))

        server.connect = connect  # type: ignore[method-assign]
        with unharmed(server), connect() as wire:
            wire.send(opened("/predict") + first)
            push(wire, piece, MUCH)
            assert cut_off(wire)
