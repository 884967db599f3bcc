"""A server that is watched while it is attacked: its memory, its files, and how long other callers wait meanwhile."""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import orjson

from tests.support.server_process import ServerProcess, Wire, request

MEBIBYTE = 1 << 20
STEP = [0.5] * 12
GOOD = {"sequences": [[STEP] * 5]}
KEY = "a-good-key-of-sixteen"


def resident_bytes(server: ServerProcess) -> int:
    """The memory that the server holds now."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def open_files(server: ServerProcess) -> int:
    """How many files the server has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def processor_seconds(server: ServerProcess) -> float:
    """The processor time that the server has used, in seconds."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def forget_peak(server: ServerProcess) -> None:
    """Lets the peak of the server's memory begin anew."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


class Bystander:
    """Another caller, who asks one good thing after another while the block runs.

    Attributes:
        seconds: How long each answer took.
        wrong: Statuses other than 200.
    """

    def __init__(self, server: ServerProcess, *headers: tuple[str, str]) -> None:
        self.seconds: list[float] = []
        self.wrong: list[int] = []
        self._server = server
        self._request = request(GOOD, **dict(headers))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with self._server.connect() as wire:
            while True:
                started = time.monotonic()
                wire.send(self._request)
                status, _, _ = wire.answer()
                self.seconds.append(time.monotonic() - started)
                if status != 200:
                    self.wrong.append(status)
                if status != 200 or self._over.wait(0.01):
                    return

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def summary(self) -> str:
        """What the caller saw."""
        median, most = statistics.median(self.seconds), max(self.seconds)
        return f"{len(self.seconds)} other calls: median {median * 1e3:.1f} ms, longest {most * 1e3:.0f} ms"


@contextmanager
def unharmed(
    server: ServerProcess, *headers: tuple[str, str], growth_bytes: int = 48 * MEBIBYTE, longest_seconds: float = 2.0
) -> Iterator[Bystander]:
    """Holds that what happens inside costs the server little memory, no files, and other callers no more than so long.

    Args:
        server: Which is attacked.
        headers: Of the other caller's requests.
        growth_bytes: By how much its memory may peak above what it held before.
        longest_seconds: The longest that another caller may wait; on a busy machine, all wait longer.
    """
    with server.connect() as wire:  # what is made once and kept is no growth
        wire.send(request(GOOD, **dict(headers)))
        assert wire.answer()[0] == 200
    files = open_files(server)
    forget_peak(server)
    before = resident_bytes(server)
    used = processor_seconds(server)
    with Bystander(server, *headers) as bystander:
        yield bystander
    growth = server.peak_bytes() - before
    print(f"memory +{growth / MEBIBYTE:.1f} MiB; server {processor_seconds(server) - used:.2f} s; {bystander.summary}")
    assert growth < growth_bytes
    assert bystander.wrong == []
    assert max(bystander.seconds) < longest_seconds
    until(lambda: open_files(server) <= files, f"{files} files open")


def until(true: object, what: str, seconds: float = 60.0) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def narrow(port: int) -> Wire:
    """A connection whose client holds next to nothing unread."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(60)
    client.connect(("127.0.0.1", port))
    return Wire(client)


def push(wire: Wire, piece: bytes, most_bytes: int) -> int:
    """Sends a piece again and again, until the server ends the connection: how many bytes went out."""
    sent = 0
    with suppress(OSError):
        while sent < most_bytes:
            wire.send(piece)
            sent += len(piece)
    return sent


def stuff(wire: Wire, piece: bytes) -> None:
    """Sends a piece again and again until nothing moves any more, or the server has heard enough."""
    wire.socket.settimeout(0.5)
    with suppress(OSError):
        while True:
            wire.socket.sendall(piece)
    wire.socket.settimeout(60)


def calls_of(server: ServerProcess, **headers: str) -> dict[str, float]:
    """How many inference calls have which code."""
    found: dict[str, float] = {}
    text = server.client.get("/metrics", headers=headers).text
    for code, value in re.findall(r'lengthwise_requests_total\{code="(\d+)",[^}]*\} (\S+)', text):
        found[code] = found.get(code, 0) + float(value)
    return {code: value for code, value in found.items() if value}


def payload() -> bytes:
    """A good body of `/predict`."""
    return orjson.dumps(GOOD)
