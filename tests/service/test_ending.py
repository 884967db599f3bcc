"""The exit: nothing holds it past the drain, whatever hangs at that moment."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lengthwise.processes import ending
from lengthwise.processes.ending import leave_behind
from lengthwise.settings import bundled_models
from tests.support.doors import certificate
from tests.support.model_directories import place
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, request, started

pytestmark = pytest.mark.process

STEP = [0.5] * 12
GOOD = {"sequences": [[STEP]]}
DRAIN_SECONDS = 2
BOUND_SECONDS = DRAIN_SECONDS + 3 + 60
"""What is promised, and what a busy machine adds; whatever is tried here held the exit for far longer, or for ever."""


@contextmanager
def ended_in_time(server: ServerProcess) -> Iterator[None]:
    """The block, the signal, and the exit, which comes in time and is a good one."""
    yield
    began = time.monotonic()
    server.terminate()
    assert server.end() == 0, server.text
    assert time.monotonic() - began < BOUND_SECONDS, server.text
    assert "Traceback" not in server.text


@contextmanager
def starting(*arguments: str) -> Iterator[ServerProcess]:
    """A process that has begun to look at its models."""
    server = ServerProcess("--drain-seconds", str(DRAIN_SECONDS), *arguments)
    try:
        server.wait_for("models run on")
        yield server
    finally:
        server.kill()


def copies(folder: Path, numbers: range) -> None:
    for number in numbers:
        place(folder, f"copy-{number}")


@pytest.mark.long
def test_models_that_are_being_loaded(tmp_path: Path) -> None:
    copies(tmp_path / "models", range(30))
    with starting(str(tmp_path / "models")) as server, ended_in_time(server):
        server.wait_for("models run on")
    assert "is ready on" not in server.text
    assert "cannot start" not in server.text


@pytest.mark.long
def test_models_that_are_being_loaded_beside_what_runs(tmp_path: Path) -> None:
    copies(tmp_path / "models", range(1))
    with started(str(tmp_path / "models"), "--drain-seconds", str(DRAIN_SECONDS)) as server:
        copies(tmp_path / "models", range(1, 30))
        server.process.send_signal(signal.SIGHUP)
        with ended_in_time(server):
            assert server.predict(GOOD | {"model": "copy-0"}).status_code == 200
        assert "copy-29/1 is ready" not in server.text


@pytest.mark.long
def test_a_folder_that_nobody_can_read_to_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "hangs" / "1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "manifest.json")
    shutil.copy(bundled_models() / "japanese-vowels" / "1" / "model.onnx", folder)
    with starting(str(tmp_path / "models")) as server, ended_in_time(server):
        pass


@pytest.mark.long
def test_a_request_that_is_never_said_to_its_end_is_told() -> None:
    with (
        started("--drain-seconds", str(DRAIN_SECONDS)) as server,
        server.connect() as begun,
        server.connect() as silent,
    ):
        with ended_in_time(server):
            begun.send(request(GOOD)[:-10])
            silent.send(b"POST /v1/models/japanese-vowels:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
            assert server.get("/livez").status_code == 200  # both were read before it
        for wire in (begun, silent):
            status, headers, _ = wire.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert wire.answer()[0] == 0


@pytest.mark.long
def test_handshakes_that_go_no_further(tmp_path: Path) -> None:
    arguments = ("--tls-cert-file", str(certificate(tmp_path)[0]), "--header-timeout-seconds", "600")
    with starting(*arguments) as server, contextlib.ExitStack() as stack, ended_in_time(server):
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))


@pytest.mark.long
@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(False, id="accepts and never answers"),
        pytest.param(None, marks=pytest.mark.long, id="is not there"),
    ],
)
def test_a_trace_collector_that(answers: bool | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        port = collector.getsockname()[1]
        if answers is None:
            collector.close()
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        with started("--drain-seconds", str(DRAIN_SECONDS), **variables) as server, ended_in_time(server):
            for _ in range(3):
                assert server.predict(GOOD).status_code == 200
    assert "the last spans are lost" in server.text


@pytest.mark.long
def test_a_first_connection_after_the_signal_is_told_while_another_is_waited_for() -> None:
    with started("--drain-seconds", "600") as server, server.connect() as begun:
        begun.send(request(GOOD)[:-10])
        assert server.get("/livez").status_code == 200
        server.terminate()
        server.wait_for("draining")
        answer = server.predict(GOOD)
        assert (answer.status_code, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
        ready = server.get("/readyz")
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
        begun.send(request(GOOD)[-10:])
        assert begun.answer()[0] == 503
        assert server.end() == 0


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have been ended."""
    codes: list[int] = []
    monkeypatch.setattr(ending.os, "_exit", codes.append)
    return codes


HANGS = """
import ctypes, signal, sys, threading
from lengthwise.processes.ending import end_for_certain
with end_for_certain() as end_within:
    signal.signal(signal.SIGTERM, lambda *_: end_within(0.05))
    signal.raise_signal(signal.SIGTERM)
    {hangs}
"""


@pytest.mark.parametrize(
    "hangs",
    [
        pytest.param("threading.Event().wait()", id="waits"),
        pytest.param("ctypes.PyDLL(None).pause()", id="keeps the interpreter"),
    ],
)
def test_the_last_resort_ends_a_process_that_does_not_end_and_says_where_it_is(hangs: str) -> None:
    program = [sys.executable, "-c", HANGS.format(hangs=hangs)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:00.05")
    assert 'File "<string>", line 7 in <module>' in done.stderr


FULL = """
import os
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(2, True)
"""


@pytest.mark.parametrize("hangs", ["threading.Event().wait()", "threading.Event().wait(0.5)"])
@pytest.mark.parametrize("ignored", [False, True])  # as signals without a handler are in a container's first process
def test_the_last_resort_ends_one_whose_stderr_takes_nothing(hangs: str, ignored: bool) -> None:
    ignore = "import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)" if ignored else ""
    program = [sys.executable, "-c", ignore + FULL + HANGS.format(hangs=hangs)]
    with subprocess.Popen(program, stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(PATIENCE_SECONDS) == signal.SIGALRM
        finally:
            process.kill()


@pytest.mark.parametrize("seconds", [None, 600])
def test_the_last_resort_leaves_one_alone_that_does(seconds: float | None) -> None:
    program = HANGS.format(hangs="").replace("0.05", str(seconds))
    if seconds is None:  # there was no signal
        program = program.replace("signal.raise_signal(signal.SIGTERM)", "pass")
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["runner-0", "first run", "rescan", "probe", "verification"])
def test_a_thread_inside_a_library_is_left_behind(ends: list[int], name: str) -> None:
    free = threading.Event()
    before = threading.enumerate()
    thread = threading.Thread(target=free.wait, name=name)
    thread.start()
    leave_behind([*before, thread])
    assert ends == []
    leave_behind(before)
    assert ends == [0]
    free.set()
    thread.join()
    leave_behind(before)
    assert ends == [0]
