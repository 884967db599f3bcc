"""What keeps workers from starting, and what they leave: causes that pass end nothing, and no file stays."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lengthwise.bench.launch import free_port
from lengthwise.errors import ConfigurationError
from lengthwise.processes import shared_memory, supervisor
from lengthwise.processes.shared_memory import shared_file
from lengthwise.processes.supervisor import MOST_EARLY, Supervisor, WorkerSlot, supervise
from lengthwise.processes.worker_count import WorkerCount
from lengthwise.repository.source import fetch
from lengthwise.settings import Settings, bundled_models
from lengthwise.stores import cache
from tests.support import proc
from tests.support.doors import certificate
from tests.support.numpy_models import samples
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, started
from tests.support.waiting import answers, wait_until
from tests.support.worker_faults import may_mount
from tests.support.workers import GOOD, Workers

KEY = "a-key-of-many-characters"


class Trouble:
    """A cause that keeps workers from starting: the options it needs, how it begins, and how it passes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options: list[str] = []
        self.headers: dict[str, str] = {}
        self.verify: ssl.SSLContext | None = None
        self.models = folder / "models"
        shutil.copytree(bundled_models(), self.models)

    def keys(self) -> Callable[[ServerProcess], Any]:
        """The file of keys is empty for a while."""
        file = self.folder / "keys"
        file.write_text(KEY)
        self.options, self.headers = ["--api-keys-file", str(file)], {"authorization": f"Bearer {KEY}"}
        return lambda _: (file.write_text(""), lambda: file.write_text(KEY))[1]

    def folder_away(self) -> Callable[[ServerProcess], Any]:
        """The folder of models is on a mount that is away."""
        away = self.folder / "away"
        return lambda _: (self.models.rename(away), lambda: away.rename(self.models))[1]

    def certificate(self) -> Callable[[ServerProcess], Any]:
        """A certificate is in the middle of its renewal."""
        file, self.verify = certificate(self.folder)
        text = file.read_text()
        self.options = ["--tls-cert-file", str(file)]
        return lambda _: (file.write_text(text[:200]), lambda: file.write_text(text))[1]

    def descriptors(self) -> Callable[[ServerProcess], Any]:
        """The parent has no descriptors left."""

        def begin(server: ServerProcess) -> Callable[[], Any]:
            pid = server.process.pid
            before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (proc.open_files(pid) - 4, before[1]))
            return lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        return begin


@pytest.mark.process
@pytest.mark.long  # twelve seconds of pauses between six starts
@pytest.mark.parametrize("cause", ["keys", "folder_away", "certificate", "descriptors"])
def test_while_one_serves_another_that_cannot_start_is_tried_again(cause: str, tmp_path: Path) -> None:
    trouble = Trouble(tmp_path)
    begin = getattr(trouble, cause)()
    with started(str(trouble.models), "--workers", "2", *trouble.options, verify=trouble.verify) as server:
        server.client.headers.update(trouble.headers)
        workers = Workers(server)
        gone = workers.ready()[0]["pid"]
        os.kill(gone, signal.SIGKILL) if cause == "descriptors" else None
        end = begin(server)
        if cause != "descriptors":
            os.kill(gone, signal.SIGKILL)
        try:
            wait_until(lambda: server.text.count("another one starts in") > MOST_EARLY, lambda: server.text)
            found = []
            for _ in range(8):
                with suppress(httpx2.TransportError):
                    found.append(server.predict(GOOD).status_code)
            assert set(found) == {200}
        finally:
            end()
        workers.replaced(gone)
        assert server.figures()["lengthwise_worker_restarts_total"] > MOST_EARLY
        server.terminate()
        assert server.end() == 0


@pytest.mark.long
@pytest.mark.process
def test_a_worker_that_is_dead_is_not_shown_as_ready_though_nobody_has_noticed() -> None:
    with started("--workers", "2") as server:
        workers = Workers(server)
        gone = workers.ready()[1]["pid"]
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            os.kill(gone, signal.SIGKILL)
            workers.when(lambda found: [one["ready"] for one in found] == [True, False])
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        workers.replaced(gone)


@pytest.mark.long
@pytest.mark.process
def test_no_counter_goes_back_when_the_worker_that_showed_it_is_killed() -> None:
    with started("--workers", "2", "--verify-share", "1") as server:
        workers = Workers(server)
        pids = [one["pid"] for one in workers.ready()]
        with httpx2.Client(base_url=server.url, trust_env=False) as client:  # all on one connection

            def verified() -> dict[str, float]:
                figures = samples(client.get("/metrics").text)
                return figures if any(n for name, n in figures.items() if "verified_answers_total" in name) else {}

            for _ in range(20):
                assert client.post("/predict", json=GOOD).status_code == 200
            wait_until(verified)
            before = verified()
            (asked,) = (pid for pid in pids if proc.connections(pid, server.port))
        os.kill(asked, signal.SIGKILL)
        workers.replaced(asked)
        after = server.figures()
        counters = [name for name in before if name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert "process_cpu_seconds_total" in counters
        assert [name for name in counters if after.get(name, 0) < before[name]] == []


@pytest.fixture
def open_signals() -> Iterator[None]:
    """A supervisor leaves signals held, as the process ends."""
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP, signal.SIGINT])


def test_a_supervision_that_fails_ends_the_service_with_its_reason(
    open_signals: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: Supervisor, slot: WorkerSlot) -> Any:
        raise ZeroDivisionError(f"of slot {slot.index}")

    monkeypatch.setattr(Supervisor, "_run_worker", fails)
    with shared_file(2) as file:
        assert asyncio.run(Supervisor(Settings(drain_seconds=0), WorkerCount(2, ""), {}, file).run()) == 1
    assert "ZeroDivisionError: of slot 0" in caplog.text


def test_one_that_ends_before_its_first_message_is_logged_with_its_own_exit_code(
    open_signals: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = asyncio.create_subprocess_exec

    async def ended(*_: str, **__: Any) -> asyncio.subprocess.Process:
        process = await start(sys.executable, "-S", "-c", "raise SystemExit(77)")
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", ended)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)
    with shared_file(2) as file:
        assert asyncio.run(Supervisor(Settings(drain_seconds=0), WorkerCount(2, ""), {}, file).run()) == 1
    assert "(code 77); no worker is ready" in caplog.text
    assert "cannot be started" not in caplog.text


def test_without_room_for_the_shared_memory_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "memfd_create", full)
    monkeypatch.setattr(shared_memory.tempfile, "TemporaryFile", full)
    with pytest.raises(ConfigurationError, match=r"no room for the \d+ bytes that 3 workers share: No space left"):
        shared_file(3)


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.process
@pytest.mark.parametrize(
    "shared", ["size=64k", None, *(pytest.param(each, marks=pytest.mark.long) for each in ("ro", "noexec"))]
)
def test_a_full_a_read_only_or_a_missing_place_for_shared_memory_changes_nothing(shared: str | None) -> None:
    if not may_mount():
        pytest.skip("this process may not mount")
    of_shared = f"mount -t tmpfs -o {shared} shm /dev/shm" if shared else "mount -t tmpfs none /dev"
    full = "dd if=/dev/zero of=/dev/shm/full bs=1k; " if shared == "size=64k" else ""
    script = f'exec 3>/dev/null; {of_shared} && {{ {full} exec "$@" 2>&3 <&- ; }} 2>&3'
    port = free_port()
    command = [sys.executable, "-m", "tests.support.prepared", "serve", "--workers", "2", "--port", str(port)]
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script, "sh", *command])
    try:
        wait_until(lambda: process.poll() is not None or answers(port, "/readyz"))
        assert process.poll() is None
        pids = proc.children(process.pid, "serve")
        os.kill(pids[0], signal.SIGKILL)  # its counts are read by the parent
        wait_until(lambda: len(proc.children(process.pid, "serve")) == 2 and pids[0] not in proc.serving(process.pid))
        wait_until(lambda: answers(port, "/readyz"))
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.process
@pytest.mark.parametrize("ends", ["second signal", "killed"])
def test_nothing_that_the_workers_share_has_a_name(ends: str, tmp_path: Path) -> None:
    with started("--workers", "2", "--drain-seconds", "600", TMPDIR=str(tmp_path)) as server:
        pids = [server.process.pid, *(one["pid"] for one in Workers(server).ready())]
        named = [path for pid in pids for path in proc.files_in(pid, "/dev/shm", str(tmp_path))]
        assert named == []
        if ends == "killed":
            server.process.kill()
        else:
            with server.connect() as wire:
                wire.send(b"POST /predict HTTP/1.1\r\n")
                server.terminate()
                server.wait_for("draining")
                server.terminate()
                server.end()
        server.end()
        wait_until(lambda: not any(map(proc.is_there, pids[1:])))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".ses"] == []  # that one is onnxruntime's


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_hangup_during_the_start_ends_nobody(workers: int) -> None:
    server = ServerProcess("--workers", str(workers), quickly=True)
    try:
        wait_until(lambda: proc.holds(server.process.pid, signal.SIGHUP))

        def is_ready_after_another() -> bool:
            for pid in {server.process.pid, *proc.serving(server.process.pid)}:
                with suppress(OSError):
                    os.kill(pid, signal.SIGHUP)
            assert server.process.poll() is None, server.text
            return answers(server.port, "/readyz")

        wait_until(is_ready_after_another, lambda: server.text)
        if workers > 1:
            Workers(server).ready()
            assert server.figures()["lengthwise_worker_restarts_total"] == 0
        server.terminate()
        assert server.end() == 0
    finally:
        server.kill()


@pytest.mark.process
@pytest.mark.long  # the workers wait five seconds for each other
def test_people_are_invited_only_when_every_worker_answers() -> None:
    server = ServerProcess("--workers", "2", quickly=True)
    try:
        wait_until(lambda: len(proc.serving(server.process.pid)) == 2, lambda: server.text)
        late = max(proc.serving(server.process.pid))
        os.kill(late, signal.SIGSTOP)
        wait_until(lambda: answers(server.port, "/readyz"), lambda: server.text)  # the other one is
        os.kill(late, signal.SIGCONT)
        server.wait_for("try it: .*/docs")
        assert server.text.index("all 2 workers are ready") < server.text.index("try it: ")
        assert server.text.count("try it: ") == 1
    finally:
        server.kill()


def test_what_fetches_models_leaves_signals_to_the_main_thread(monkeypatch: pytest.MonkeyPatch):
    """Otherwise the kernel gives one to a thread of a store's client while the main thread holds it to import."""
    monkeypatch.setattr(cache, "fetch", lambda *_, **__: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    held: Any = fetch("https://models.example/models.tar", Settings())
    assert held >= {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_wrong_certificate_ends_the_service_before_its_ports_are_opened(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(port=taken.getsockname()[1], tls_cert_file=broken)
        with pytest.raises(ConfigurationError, match="--tls-cert-file"):
            supervise(settings, WorkerCount(2, ""))


@pytest.mark.long
@pytest.mark.process
def test_an_extra_that_no_worker_has_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')\n")
    command = [sys.executable, "-m", "lengthwise", "serve", "--workers", "2", "--port", str(free_port())]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if "fastapi" in line]
    assert len(errors) == 1, ended.stderr
    assert errors[0].startswith("error: 'lengthwise serve' needs fastapi, which is not installed: pip install")


@pytest.mark.long
@pytest.mark.process
@pytest.mark.sampled(6)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_end_during_the_imports_is_obeyed_after_them(workers: int, number: signal.Signals) -> None:
    server = ServerProcess("--workers", str(workers))
    try:
        wait_until(lambda: proc.holds(server.process.pid, signal.SIGTERM))  # and SIGINT with it
        server.process.send_signal(number)
        assert (server.end(), server.text) == (130, "error: interrupted\n")
    finally:
        server.kill()


_ONLY_BEGIN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from lengthwise.commands.cli import main
from lengthwise.processes import server
from lengthwise.processes.worker import Worker
from lengthwise.repository import verification_process
which, folder = sys.argv.pop(1), sys.argv[2]
if which != "alone":
    worker = SimpleNamespace(first=which == "first", index=0, settings={"models": folder, "workers": 2})
    Worker.of_this_process = lambda: worker
verification_process.begin_process = lambda begun: print("early", begun == Path(folder))
server.serve = lambda *_: print("serves") or 0
main()
"""


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.process
@pytest.mark.parametrize(("which", "early"), [("alone", ["early True"]), ("first", ["early True"]), ("other", [])])
def test_a_process_that_verifies_starts_before_the_service(tmp_path: Path, which: str, early: list[str]) -> None:
    command = [sys.executable, "-c", _ONLY_BEGIN, which, "serve", str(tmp_path), "--workers", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ran.stdout.splitlines() == [*early, "serves"], ran.stderr


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 3])
def test_no_process_that_verifies_is_left_once_the_models_are_loaded(tmp_path: Path, workers: int) -> None:
    models = tmp_path / "models"
    shutil.copytree(bundled_models(), models)

    def early() -> list[int]:
        return [child for pid in proc.serving(server.process.pid) for child in proc.children(pid, "verification_child")]

    with started(str(models), "--workers", str(workers)) as server:
        assert server.predict(GOOD).status_code == 200
        assert not early()
    shutil.rmtree(models)
    models.mkdir()
    server = ServerProcess(str(models), "--workers", str(workers))
    try:
        server.wait_for("no model is ready")
        wait_until(lambda: not early())
    finally:
        server.kill()
