"""The machine around the service breaks: its disk is full, files run out, its clock jumps, it stands still."""

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port, running, serve_command
from tests.support import proc
from tests.support.chaos import is_idle, publish, until
from tests.support.model_directories import place
from tests.support.numpy_models import manifest, model, serving
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, request, started
from tests.support.waiting import answers, wait_until

GOOD = {"sequences": [[[0.5] * 12] * 5]}
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started() as process:
        yield process


def ask(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.request("POST", "/predict", request(GOOD).partition(b"\r\n\r\n")[2])
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_log_costs_no_answer() -> None:
    port = free_port()
    command = serve_command(None, port, {"access-log": "1", "log-format": "json"})
    with FULL.open("wb") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: process.poll() is not None or answers(port, "/readyz"))
            assert process.poll() is None
            assert [ask(port) for _ in range(20)] == [200] * 20
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.long
def test_a_log_file_that_may_not_grow_costs_no_answer(tmp_path: Path) -> None:
    port = free_port()
    serve = serve_command(None, port, {"access-log": "1"})
    # Python would cut off the bytecode that it stores, and the next process that reads it would end with an EOFError
    environment = "PYTHONDONTWRITEBYTECODE=1"
    limited = ["sh", "-c", f'ulimit -f 1 && exec env {environment} "$@" 2> "$0"', str(tmp_path / "log"), *serve]
    with running(limited, port):
        assert [ask(port) for _ in range(50)] == [200] * 50
    assert (tmp_path / "log").stat().st_size <= 1024


@pytest.mark.process
def test_without_file_descriptors_open_connections_are_answered(
    server: ServerProcess,
) -> None:
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        kept = [stack.enter_context(server.connect()) for _ in range(5)]
        for wire in kept:
            wire.send(request(GOOD))
            assert wire.answer()[0] == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (proc.open_files(server.process.pid), limits[1]))
        try:
            waiting = []
            for _ in range(20):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS))
                with suppress(OSError):  # it may be closed at once
                    client.sendall(request(GOOD))
                waiting.append(client)
            for wire in kept * 5:
                wire.send(request(GOOD))
                assert wire.answer()[0] == 200
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with server.connect() as wire:
            wire.send(request(GOOD))
            assert wire.answer()[0] == 200


@pytest.mark.process
@pytest.mark.long
async def test_without_descriptors_a_new_version_is_not_loaded_and_the_served_one_answers(tmp_path: Path) -> None:
    models = tmp_path / "models"
    place(models)
    with started(str(models)) as server:
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        with server.connect() as wire:
            wire.send(request(GOOD))
            assert wire.answer()[0] == 200
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (proc.open_files(pid), limits[1]))
            publish(server, models, 2)
            server.wait_for(r"Too many open files|cannot be read|not verified|refused|unexpected")
            for _ in range(5):
                wire.send(request(GOOD))
                assert wire.answer()[0] == 200
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            publish(server, models, 3)
            await until(lambda: '"version":"3"' in server.get("/healthz").text, "the next version is served")
        await until(lambda: is_idle(server), "nothing is in memory")


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("sent_before", [0, 20], ids=["nothing", "half a header block"])
def test_a_request_that_arrived_while_the_process_stood_still_is_answered(sent_before: int) -> None:
    """The timers of its connection end before the process reads what has arrived."""
    seconds = 5
    whole = request(GOOD)
    with started("--header-timeout-seconds", str(seconds)) as server, server.connect() as line:
        line.send(whole[:sent_before])
        time.sleep(0.5)  # until it was accepted; if it was not, its time begins later, and it is answered as well
        server.process.send_signal(signal.SIGSTOP)
        try:
            line.send(whole[sent_before:])
            time.sleep(seconds + 0.5)
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert line.answer()[0] == 200


@pytest.mark.long
async def test_no_deadline_and_no_wait_depends_on_the_clock_of_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter(range(10**9))
    jump = 86_400.0

    def jumping() -> float:
        return jump * (next(days) % 7)

    async with serving(model(manifest()), max_wait_ms=1, default_timeout_ms=60_000) as service:
        monkeypatch.setattr(time, "time", jumping)
        for number in range(50):
            answer = await service.predict({"sequences": [[[number, 3]]], "timeout_ms": 60_000})
            assert answer.status_code == 200
        figures = await service.figures()
        assert figures['lengthwise_request_duration_seconds_sum{model="sums",version="1"}'] < jump
        assert figures['lengthwise_queue_wait_seconds_sum{model="sums",version="1"}'] < jump


@pytest.mark.process
@pytest.mark.long
def test_the_service_reads_the_clock_of_the_day_only_for_times_that_people_see() -> None:
    package = Path(sys.modules["lengthwise"].__path__[0])
    readers = {
        str(path.relative_to(package)).replace(os.sep, "/")
        for path in package.rglob("*.py")
        if "time.time()" in path.read_text() or "datetime.now(" in path.read_text()
    }
    for_people = {"telemetry/metrics.py", "monitoring/monitoring.py"}  # the second for the column `arrived` of a record
    for_people |= {"serving/service.py", "processes/supervisor.py"}  # when service and workers began
    of_others = {"client/answers.py"}  # a proxy's `Retry-After` may be a date
    of_others |= {"grpc/transport.py"}  # gRPC's deadlines
    assert readers == for_people | of_others, "durations and deadlines are of time.monotonic"
