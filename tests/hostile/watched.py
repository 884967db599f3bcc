"""A server that is watched while it is attacked: its memory, its files, and how long other callers wait meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support import proc
from tests.support.server_process import ServerProcess, Wire, request
from tests.support.waiting import wait_until

MEBIBYTE = 1 << 20
STEP = [0.5] * 12
GOOD = {"sequences": [[STEP] * 5]}
KEY = "a-good-key-of-sixteen"


@contextmanager
def unharmed(
    server: ServerProcess, *headers: tuple[str, str], growth_bytes: int = 48 * MEBIBYTE, longest_seconds: float = 2.0
) -> Iterator[None]:
    """Holds that what happens inside costs the server little memory, no files, and other callers no long wait.

    `longest_seconds` is the processor time that the server may use while another caller waits for one answer.
    """
    pid, good, over = server.process.pid, request(GOOD, **dict(headers)), threading.Event()
    seconds: list[float] = []  # how long each answer to the other caller took
    worked: list[float] = []  # processor seconds of the server meanwhile, without those of other programs
    statuses: set[int] = set()

    def ask() -> None:
        with server.connect() as wire:
            while True:
                started, used = time.monotonic(), proc.processor_seconds(pid)
                wire.send(good)
                statuses.add(wire.answer()[0])
                seconds.append(time.monotonic() - started)
                worked.append(proc.processor_seconds(pid) - used)
                if statuses != {200} or over.wait(0.01):
                    return

    with server.connect() as wire:  # what is made once and kept is no growth
        wire.send(good)
        assert wire.answer()[0] == 200
    files = proc.open_files(pid)
    proc.forget_peak(pid)
    before, used = proc.resident_bytes(pid), proc.processor_seconds(pid)
    other = threading.Thread(target=ask)
    other.start()
    try:
        yield
    finally:
        over.set()
        other.join()
    growth, took = server.peak_bytes() - before, proc.processor_seconds(pid) - used
    print(
        f"memory +{growth / MEBIBYTE:.1f} MiB; server {took:.2f} s; {len(seconds)} others, {max(seconds):.3f} s at most"
    )
    assert growth < growth_bytes
    assert statuses == {200}
    assert max(worked) < longest_seconds
    wait_until(lambda: proc.open_files(pid) <= files, f"{files} files open", 60)


def narrow(port: int) -> Wire:
    """A connection whose client holds next to nothing unread."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(60)
    client.connect(("127.0.0.1", port))
    return Wire(client)


def stuff(wire: Wire, piece: bytes) -> None:
    """Sends a piece again and again until nothing moves any more, or the server has heard enough."""
    wire.socket.settimeout(0.5)
    with suppress(OSError):
        while True:
            wire.socket.sendall(piece)
    wire.socket.settimeout(60)
