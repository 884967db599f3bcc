"""The doors of a server: HTTP, the admin port and gRPC, each without and with TLS, and an honest caller of each."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

from lengthwise.bench.launch import free_port
from tests.support import http2
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, started

PROBE = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
HEALTH = "/grpc.health.v1.Health/Check"


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A server's certificate with its key, and what trusts it."""
    authority, trusting, path = trustme.CA(), ssl.create_default_context(), folder / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    authority.configure_trust(trusting)
    return path, trusting


@dataclass(frozen=True)
class Door:
    """One port of a server."""

    name: str
    port: int
    tls: ssl.SSLContext | None

    def connect(self, *, handshake: bool = True, seconds: float = PATIENCE_SECONDS) -> socket.socket:
        """A connection; without its handshake it is plain, also where the door has TLS."""
        wire = socket.create_connection(("127.0.0.1", self.port), seconds)
        if self.tls is None or not handshake:
            return wire
        try:
            return self.tls.wrap_socket(wire, server_hostname="localhost")
        except OSError:
            wire.close()
            raise

    def answers(self, seconds: float = 2.0) -> bool:
        """Whether an honest caller on a new connection is answered in time."""
        with suppress(OSError), self.connect(seconds=seconds) as wire:
            if self.name != "grpc":
                wire.sendall(PROBE)
                return wire.recv(65_536).startswith(b"HTTP/1.1 200")
            connection = http2.Connection(wire)
            stream = connection.begin(HEALTH, http2.message(b""))
            return any(of == stream and kind == http2.DATA for kind, of in _until_ended(connection, stream))
        return False

    def head(self) -> bytes:
        """What a caller sends before its first request: nothing over HTTP/1.1."""
        return http2.preface() if self.name == "grpc" else b""


def _until_ended(connection: http2.Connection, stream: int) -> Iterator[tuple[int, int]]:
    while True:
        for kind, flags, of, _ in connection.frames():
            yield kind, of
            if of == stream and (kind == http2.RESET or flags & http2.END_STREAM):
                return


@dataclass(frozen=True)
class Doors:
    """A server, and its doors by name."""

    server: ServerProcess
    of: dict[str, Door]


@contextmanager
def opened(*options: str, folder: Path | None = None, files: int | None = None) -> Iterator[Doors]:
    """A server with all doors; with TLS where there is a folder for its certificate."""
    ports = {"admin": free_port(), "grpc": free_port()}
    given = ["--admin-port", str(ports["admin"]), "--grpc-port", str(ports["grpc"]), *options]
    tls = None
    if folder is not None:
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        given += ["--tls-cert-file", str(folder / "server.pem")]
    with started(*given, verify=tls, files=files) as server:
        protocols = None if tls is None else ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        if protocols is not None:
            protocols.set_alpn_protocols(["h2"])
        doors = {
            "http": Door("http", server.port, tls),
            "admin": Door("admin", ports["admin"], tls),
            "grpc": Door("grpc", ports["grpc"], protocols),
        }
        yield Doors(server, doors)
