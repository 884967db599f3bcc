"""`lengthwise serve` as a process of its own, for what only a real socket or a real signal shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from lengthwise.bench.launch import free_port
from tests.support import prepared, proc
from tests.support.numpy_models import idle, samples
from tests.support.waiting import wait_until

PATIENCE_SECONDS = 180.0
KEPT = ("LENGTHWISE_WORKERS",)
"""Options from the environment of the tests: with 2 workers, these serve in every test that does not say otherwise."""


class ServerProcess:
    """The process, and what it has said; over HTTPS where it is said how to verify that.

    It is started `through` another command. With `log`, what it says goes there instead; `faults` is as in
    `faulty_server`; `quickly` starts with the costs of the bundled model, as `prepared` says.
    """

    def __init__(
        self,
        *arguments: str,
        verify: ssl.SSLContext | None = None,
        files: int | None = None,
        faults: Path | None = None,
        log: Path | None = None,
        quickly: bool = False,
        through: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}" if verify is None else f"https://localhost:{self.port}"
        given = [] if "--port" in arguments else ["--port", str(self.port)]
        limited = [] if files is None else ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files)]
        program = ["tests.support.prepared"] if quickly else ["lengthwise"]
        if faults is not None:
            program = ["tests.support.faulty_server", str(faults)]
        kept = {prepared.VARIABLE: str(prepared.models())} if quickly else {}
        if program != ["lengthwise"]:  # the tests are no package that is installed, and a page may run elsewhere
            kept["PYTHONPATH"] = os.pathsep.join([str(prepared.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        output = subprocess.PIPE if log is None else log.open("a")
        self.process = subprocess.Popen(
            [*through, *limited, sys.executable, "-m", *program, "serve", *arguments, *given],
            stdin=subprocess.DEVNULL,
            stderr=output,
            text=True,
            env={name: value for name, value in os.environ.items() if name in KEPT or name[:11] != "LENGTHWISE_"}
            | kept
            | variables,
        )
        if not isinstance(output, int):
            output.close()  # the process has it
        self.client = httpx2.Client(
            base_url=self.url,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            verify=False if verify is None else verify,  # to read the certificates of the system takes a while
            limits=httpx2.Limits(max_keepalive_connections=0),
        )
        self.said: list[str] = []
        self._silent = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def _listen(self) -> None:
        for line in self.process.stderr or ():
            with self._news:
                self.said.append(line)
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        """Everything on stderr so far."""
        return "".join(self.said)

    def wait_for(self, pattern: str) -> None:
        """Returns once a line on stderr has that in it."""
        with self._news:
            self._news.wait_for(lambda: self._silent or re.search(pattern, self.text), PATIENCE_SECONDS)
        assert re.search(pattern, self.text), f"{pattern!r} is not in:\n{self.text}"

    def end(self) -> int:
        """Waits for the process to end by itself: its exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends whatever still runs."""
        self.client.close()
        self.process.kill()
        self.end()
        if self.process.stderr is not None:
            assert not self._reader.is_alive(), "a process that it started lives, and has its stderr"
            self.process.stderr.close()

    def get(self, path: str) -> httpx2.Response:
        return self.client.get(path)

    def predict(self, body: Any) -> httpx2.Response:
        """`POST /predict` of a value, on a connection of its own."""
        return self.client.post("/predict", json=body)

    def figures(self) -> dict[str, float]:
        """The samples of `/metrics`."""
        return samples(self.get("/metrics").text)

    def wait_until_idle(self) -> None:
        """Returns once nothing waits, runs or is in hand: a caller has its answer before the server lets go of it."""
        wait_until(lambda: idle(self.figures()), self.figures, PATIENCE_SECONDS)

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far."""
        return proc.peak_bytes(self.process.pid)

    def connect(self) -> Wire:
        """A connection for bytes as one pleases."""
        return Wire(socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS))


class Wire:
    """A socket, and the answers that come out of it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._file = connection.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body. A connection that ended has status 0."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            return 0, {}, b""
        status = int(line.split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self._file.read(int(headers.get("content-length", 0)))


def request(body: Any, *, close: bool = False, **headers: str) -> bytes:
    """The bytes of one `POST /predict`; a header `content_length` replaces the right one."""
    payload = body if isinstance(body, bytes) else orjson.dumps(body)
    named = {"host": "x", "content-type": "application/json", "content-length": str(len(payload))}
    named |= {name.replace("_", "-"): text for name, text in headers.items()}
    if close:
        named["connection"] = "close"
    lines = ["POST /predict HTTP/1.1", *(f"{name}: {text}" for name, text in named.items() if text), "", ""]
    return "\r\n".join(lines).encode() + payload


@contextmanager
def started(
    *arguments: str,
    verify: ssl.SSLContext | None = None,
    files: int | None = None,
    faults: Path | None = None,
    quickly: bool = True,
    **variables: str,
) -> Iterator[ServerProcess]:
    """A process that serves and has looked at its models, while the block runs; `faults` as in `faulty_server`.

    The bundled model has its costs beside it, as `prepared` says, unless `quickly` is false. A request has
    long to be sent and long to be answered: on a busy machine a test may need longer than the defaults allow.
    """
    patient = {"HEADER_TIMEOUT_SECONDS": PATIENCE_SECONDS, "DEFAULT_TIMEOUT_MS": 1000 * PATIENCE_SECONDS}
    patient["JUDGE_TIMEOUT_SECONDS"] = 3600
    variables = {f"LENGTHWISE_{name}": f"{value:g}" for name, value in patient.items()} | variables
    server = ServerProcess(
        *arguments, verify=verify, files=files, faults=faults, log=None, quickly=quickly, **variables
    )
    try:
        server.wait_for(r"is ready on|no model is ready")
        # The last model's line comes a little before.
        wait_until(lambda: "the server is starting" not in server.get("/readyz").text, lambda: server.text)
        yield server
    finally:
        server.kill()


def well_afterwards(test: pytest.FixtureRequest, good: Any) -> Iterator[None]:
    """Whatever a test did to the shared process: the next good request is answered, and nothing waits."""
    yield
    if "server" in test.fixturenames:
        assert test.getfixturevalue("server").predict(good).status_code == 200
        test.getfixturevalue("server").wait_until_idle()  # a withdrawn request's batch may still run


def exit_of(*arguments: str, files: int | None = None, **variables: str) -> tuple[int, str]:
    """The exit code and the words of a process that does not get to serve."""
    server = ServerProcess(*arguments, verify=None, files=files, faults=None, log=None, quickly=False, **variables)
    try:
        return server.end(), server.text
    finally:
        server.kill()
