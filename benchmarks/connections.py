"""What idle connections cost the server in memory, whatever they asked last. `python -m benchmarks.connections`.

Each kind has a server of its own, because memory that was given back is used again. Its connections are opened, each
asks once and reads the whole answer, and then they are silent: what the process holds more than before, over their
number, is what one costs. Sockets in the kernel are not counted.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import orjson

from benchmarks import machine, pages
from lengthwise.connections.limits import ADMIN_CONNECTIONS
from lengthwise.connections.request_limits import RequestLimits
from lengthwise.console.live import MOST_VIEWERS
from lengthwise.grpc import open_inference_pb2 as pb
from lengthwise.grpc.infer import INFER
from lengthwise.http.fast_path import MAX_KNOWN_FIELDS
from lengthwise.protocols.endpoint import LONGEST_KEY_BYTES
from tests.support import http2, proc
from tests.support.doors import HEALTH, Door, opened

PAGE = pages.RESULTS / "connections.md"
KIBIBYTE: Final = 1024
_FEW: Final = 16  # connections before the first look: what is made once and kept is not theirs
_QUIET_SECONDS: Final = 1.0
_STEPS: Final = [[[0.5] * 12] * 15]


def _lines(first: bytes, body: bytes = b"") -> bytes:
    """A plain request."""
    named = b"\r\nhost: x\r\n"
    if body:
        named += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return first + b" HTTP/1.1" + named + b"\r\n" + body


def _wide(request: bytes, fields: int = RequestLimits.fields, size: int = RequestLimits.header_bytes) -> bytes:
    """The same request with so many header fields, by default as many as it may have, of about so many bytes."""
    head, body = request.split(b"\r\n\r\n", 1)
    free = fields - head.count(b"\r\n")
    value = b"v" * ((size - len(head) - 64) // free - len(b"x000: \r\n"))
    return b"\r\n".join([head, *(b"x%03d: %s" % (number, value) for number in range(free)), b"", body])


_LIVEZ: Final = _lines(b"GET /livez")
_PREDICT: Final = _lines(b"POST /predict", orjson.dumps({"sequences": _STEPS}))
_LARGE: Final = _lines(b"POST /predict", orjson.dumps({"sequences": _STEPS}) + b" " * 1_000_000)
_REFUSED: Final = _lines(b"GET /metrics")


def silent(wire: socket.socket) -> None:
    """Says nothing."""


def asks(request: bytes, status: int = 200) -> Callable[[socket.socket], None]:
    """Sends a request, and reads the whole answer."""

    def ask(wire: socket.socket) -> None:
        wire.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += _some(wire)
        head, body = received.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 %d" % status):
            raise click.ClickException(f"expected {status}: {head.decode(errors='replace')}")
        size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < size:
            body += _some(wire)

    return ask


def views(wire: socket.socket) -> None:
    """Opens the live view of the console, and reads its first frame."""
    wire.sendall(_wide(_lines(b"GET /console/live")))
    received = b""
    while b"data:" not in received:
        received += _some(wire)


def calls(path: str, message: bytes, **metadata: str) -> Callable[[socket.socket], None]:
    """Makes a call over gRPC, and reads its answer."""

    def call(wire: socket.socket) -> None:
        connection = http2.Connection(wire)
        connection.ended(connection.begin(path, http2.message(message), **metadata))

    return call


def _some(wire: socket.socket) -> bytes:
    received = wire.recv(65_536)
    if not received:
        raise click.ClickException("the server ended the connection")
    return received


def _inference() -> bytes:
    message = pb.ModelInferRequest(model_name="japanese-vowels", raw_input_contents=[b"\0\0\0\x3f" * 12])
    message.inputs.add(name="values", datatype="FP32", shape=[1, 1, 12])
    return message.SerializeToString()


_METADATA: Final = {f"x{number:02d}": "v" * 100 for number in range(80)}


@dataclass(frozen=True)
class Kind:
    """One kind of connection: its door, what it does before it is silent, and the most that there can be."""

    door: str
    act: Callable[[socket.socket], None]
    tls: bool = False
    keys: bool = False
    most: int | None = None


KINDS: Final = {
    "HTTP, nothing sent": Kind("http", silent),
    "HTTP, `GET /livez`": Kind("http", asks(_LIVEZ)),
    "HTTP, `GET /livez`, all header fields": Kind("http", asks(_wide(_LIVEZ))),
    "HTTP, `POST /predict`": Kind("http", asks(_PREDICT)),
    "HTTP, `POST /predict`, a head that is remembered": Kind(
        "http", asks(_wide(_PREDICT, MAX_KNOWN_FIELDS, LONGEST_KEY_BYTES))
    ),
    "HTTP, `POST /predict`, all header fields": Kind("http", asks(_wide(_PREDICT))),
    "HTTP, `POST /predict`, 1 MB": Kind("http", asks(_LARGE)),
    "HTTP, 401, all header fields": Kind("http", asks(_wide(_REFUSED), 401), keys=True),
    "TLS, nothing sent": Kind("http", silent, tls=True),
    "TLS, `GET /livez`, all header fields": Kind("http", asks(_wide(_LIVEZ)), tls=True),
    "TLS, `POST /predict`, all header fields": Kind("http", asks(_wide(_PREDICT)), tls=True),
    "TLS, `POST /predict`, 1 MB": Kind("http", asks(_LARGE), tls=True),
    "gRPC, `Check`": Kind("grpc", calls(HEALTH, b"")),
    "gRPC, `ModelInfer`, 80 fields of metadata": Kind("grpc", calls(f"/{INFER}", _inference(), **_METADATA)),
    "gRPC over TLS, `Check`": Kind("grpc", calls(HEALTH, b""), tls=True),
    "admin port, `GET /metrics`, all header fields": Kind("admin", asks(_wide(_REFUSED)), most=ADMIN_CONNECTIONS - 4),
    "live view of the console, all header fields": Kind("admin", views, most=MOST_VIEWERS // 2),
}
"""By name. A request with all header fields has as many and as large ones as may be (`RequestLimits`)."""


@contextmanager
def server(kind: Kind, count: int, folder: Path) -> Iterator[tuple[Door, int]]:
    """A server that takes so many connections, one of its doors, and its process."""
    options = ["--workers", "1", "--max-connections", str(8 * count + 64)]
    if kind.keys:
        (folder / "keys").write_text("a-key-of-sixteen-characters\n")
        options += ["--api-keys-file", str(folder / "keys")]
    with opened(*options, folder=folder if kind.tls else None) as doors:
        yield doors.of[kind.door], doors.server.process.pid


def bytes_of_each(kind: Kind, count: int) -> tuple[int, float]:
    """How many connections were opened, and the bytes that each costs while it is idle."""
    count = min(count, kind.most or count)
    with tempfile.TemporaryDirectory() as folder, server(kind, count, Path(folder)) as (door, pid), ExitStack() as kept:

        def connect() -> socket.socket:
            wire = door.connect()
            kept.callback(wire.close)
            kind.act(wire)
            return wire

        few = [connect() for _ in range(min(_FEW, kind.most or _FEW))]  # as many may still count when they have left
        for wire in few:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()
        time.sleep(_QUIET_SECONDS)
        before = proc.resident_bytes(pid)
        for _ in range(count):
            connect()
        time.sleep(_QUIET_SECONDS)
        return count, (proc.resident_bytes(pid) - before) / count


@click.command()
@click.option("--count", default=4096, show_default=True, help="Connections of each kind, where there may be so many.")
@click.option("--kind", "only", type=click.Choice(list(KINDS)), multiple=True, help="Only this one, and no page.")
@click.option("--out", type=click.Path(path_type=Path), default=PAGE, show_default=True, help="Page.")
def main(count: int, only: tuple[str, ...], out: Path) -> None:
    """Measures every kind of connection."""
    if not only:
        pages.require_clean(out)
    facts = machine.facts()
    lines = []
    for name in only or KINDS:
        opened_, each = bytes_of_each(KINDS[name], count)
        lines.append([name, str(opened_), f"{each / KIBIBYTE:.1f}"])
        click.echo(" | ".join(lines[-1]))
    if only:
        return
    said = (
        f"Memory of the server by idle connection, after its one request was answered. *All header fields* are "
        f"{RequestLimits.fields} of them, of {RequestLimits.header_bytes // KIBIBYTE} KiB. A server for each line; "
        "`VmRSS`, so with all "
        f"buffers of TLS and gRPC, and without the sockets in the kernel."
    )
    table = pages.table(["connection, and what it asked last", "connections", "KiB each"], lines)
    pages.write(out, pages.page(facts, "Idle connections", said, table))


if __name__ == "__main__":
    main()
