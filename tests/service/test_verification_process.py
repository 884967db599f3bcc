"""Verification in a process of its own: what a graph does to it, and what it leaves alone."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lengthwise import files
from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import ModelError, NotVerified, VerificationError
from lengthwise.repository import contents, loading, modest, verification_process, verifier
from lengthwise.repository.modest import memory_left_bytes
from lengthwise.repository.scan import Scan
from lengthwise.repository.stopping import Stopped, Stopping
from lengthwise.repository.verification_process import VerificationProcess
from lengthwise.repository.verifier import VerificationTask
from lengthwise.versions import Policy
from tests.support import fake_device, hostile_models, proc
from tests.support.hostile_models import place_graph
from tests.support.model_directories import BUNDLED, LIMITS, place, sign, tamper_with_golden
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

PATIENCE_SECONDS = 180.0
MEBIBYTE = 2**20

Started = list[subprocess.Popen[bytes]]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The processes that were started to verify."""
    started: Started = []
    start = verification_process.waiting_process

    def watched() -> subprocess.Popen[bytes]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(verification_process, "waiting_process", watched)
    return started


@contextmanager
def verifying_endlessly(
    folder: Path, processes: Started, stopping: Stopping, verification_process: VerificationProcess | None = None
) -> Iterator[list[BaseException]]:
    """A thread that verifies a graph without an end; in the list is what that raised, after the block."""
    directory, raised = place_graph(folder, hostile_models.endless), []

    def verify() -> None:
        try:
            loading.load(
                directory, LIMITS, verify=verification_process or VerificationProcess(600, 2**30), stopping=stopping
            )
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=verify)
    thread.start()
    try:
        wait_until(lambda: bool(processes))
        yield raised
    finally:
        stopping.stop()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_a_good_model_is_verified_there_as_here(tmp_path: Path, processes: Started, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    directory = place(tmp_path, max_length=64, proved=False)
    there = loading.load(directory, LIMITS, budget_seconds=0.01, verify=VerificationProcess(600, 2**30))
    assert len(processes) == 1
    assert "vowels/1 is verified on CPUExecutionProvider" in caplog.text
    (directory / "promises.json").unlink()
    here = loading.load(directory, LIMITS, budget_seconds=0.01)
    assert len(processes) == 1
    assert there.promise == here.promise
    assert there.steady
    assert there.cost.rows.tolist() == here.cost.rows.tolist()
    assert there.cost.widths.tolist() == here.cost.widths.tolist()
    assert there.session.kernels == here.session.kernels
    assert there.cost.clock is there.session.clock


def test_a_model_that_is_refused_there_has_its_reason_here(tmp_path: Path):
    directory = place(tmp_path)
    tamper_with_golden(directory)
    with pytest.raises(VerificationError):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 2**30))


def test_a_graph_that_ends_its_process_is_refused_with_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = place_graph(tmp_path, hostile_models.rows_chosen_by_lengths)
    with pytest.raises(ModelError):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 2**30))


def test_a_graph_that_hangs_is_refused_with_the_time(tmp_path: Path, processes: Started):
    directory = place_graph(tmp_path, hostile_models.endless)
    with pytest.raises(ModelError, match=r"bad/1.*2 s.*--judge-timeout-seconds"):
        loading.load(directory, LIMITS, verify=VerificationProcess(2, 2**30))
    assert not proc.is_there(processes[0].pid)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process")
def test_a_graph_that_wants_more_memory_than_it_may_is_refused_with_the_bytes(tmp_path: Path):
    directory = place_graph(tmp_path, hostile_models.greedy)
    said = rf"ran out of memory: it takes more than {256 * MEBIBYTE} bytes \(--judge-memory-bytes\)"
    with pytest.raises(ModelError, match=said):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 256 * MEBIBYTE))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process")
def test_verification_takes_at_most_most_of_the_containers_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modest, "memory_left_bytes", lambda: 320 * MEBIBYTE)
    directory = place_graph(tmp_path, hostile_models.greedy)
    with pytest.raises(NotVerified):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 2**40))


@pytest.mark.long
def test_processes_that_verify_at_the_same_time_share_what_the_container_has_left(
    tmp_path: Path, processes: Started, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(modest, "memory_left_bytes", lambda: 2000 * MEBIBYTE)
    verify = VerificationProcess(600, 700 * MEBIBYTE)
    with verifying_endlessly(tmp_path / "first", processes, Stopping(), verify):
        assert loading.load(place(tmp_path / "second"), LIMITS, budget_seconds=0.01, verify=verify)
    assert len(processes) == 2


@pytest.mark.long
def test_a_process_waits_for_others_where_the_container_has_no_full_share_left(
    tmp_path: Path, processes: Started, monkeypatch: pytest.MonkeyPatch
):
    asked, left = threading.Event(), [1000 * MEBIBYTE]

    def left_bytes() -> int:
        if processes:
            asked.set()
        return left[0]

    monkeypatch.setattr(modest, "memory_left_bytes", left_bytes)
    verify, loaded = VerificationProcess(600, 2**32), []
    second = threading.Thread(
        target=lambda: loaded.append(
            loading.load(place(tmp_path / "second"), LIMITS, budget_seconds=0.01, verify=verify)
        )
    )
    with verifying_endlessly(tmp_path / "first", processes, Stopping(), verify):
        second.start()
        assert asked.wait(PATIENCE_SECONDS)  # it has looked, and the first one has all of the memory
        assert len(processes) == 1
    second.join(PATIENCE_SECONDS)
    assert loaded
    assert len(processes) == 2


def test_a_process_that_waits_for_memory_is_stopped(
    tmp_path: Path, processes: Started, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(modest, "memory_left_bytes", lambda: 1000 * MEBIBYTE)
    verify, stopping, raised = VerificationProcess(600, 2**32), Stopping(), []

    def wait() -> None:
        try:
            loading.load(place(tmp_path / "second"), LIMITS, verify=verify, stopping=stopping)
        except Stopped as error:
            raised.append(error)

    second = threading.Thread(target=wait)
    with verifying_endlessly(tmp_path / "first", processes, Stopping(), verify):
        second.start()
        stopping.stop()
        second.join(PATIENCE_SECONDS)
        assert raised
        assert len(processes) == 1


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ({"memory.max": "1000", "memory.current": "600", "memory.stat": "anon 1\ninactive_file 50\n"}, 450),
        ({"memory.max": "max", "memory.current": "600", "memory.stat": ""}, None),
        ({"memory.max": "100", "memory.current": "600", "memory.stat": ""}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "600",
                "memory/memory.stat": "total_inactive_file 1\n",
            },
            401,
        ),
        ({}, None),
    ],
)
def test_the_memory_that_a_container_has_left_is_read(tmp_path: Path, written: dict[str, str], left: int | None):
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_left_bytes(tmp_path) == left


@pytest.mark.parametrize(("version", "below"), [("0::", ""), ("3:cpu,memory:", "memory")])
def test_the_limits_of_a_cgroup_below_the_mount_hold_too(
    version: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As of a service of systemd: of its own cgroup and of the slice around it, each with a limit or without."""
    (tmp_path / "own").write_text(f"12:pids:/\n{version}/system.slice/lengthwise.service\n")
    monkeypatch.setattr(files, "OWN_CGROUPS", tmp_path / "own")
    slice_ = tmp_path / below / "system.slice"
    names = ("limit_in_bytes", "usage_in_bytes") if below else ("max", "current")

    def limit(folder: Path, most: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip((*names, "stat"), (most, "600", ""), strict=True):
            (folder / f"memory.{name}").write_text(text)

    limit(slice_, str(2**63 - 4096) if below else "max")
    assert memory_left_bytes(tmp_path) is None
    limit(slice_ / "lengthwise.service", "1000")
    assert memory_left_bytes(tmp_path) == 400
    limit(slice_, "900")
    assert memory_left_bytes(tmp_path) == 300


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process")
def test_the_files_of_a_model_count_as_memory_that_verification_takes(tmp_path: Path):
    directory = place(tmp_path)
    with (directory / "verification.json").open("a") as file:
        file.write(" " * 63 * MEBIBYTE)
    sign(directory)
    with pytest.raises(ModelError, match="--judge-memory-bytes"):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 64 * MEBIBYTE))


def test_a_file_larger_than_verification_may_take_is_refused_unread(tmp_path: Path, processes: Started):
    directory = place(tmp_path)
    os.truncate(directory / "model.onnx", 2**40)
    with pytest.raises(VerificationError):
        loading.load(directory, LIMITS, verify=VerificationProcess(600, 2**30), most_bytes=2**30)
    assert not processes


def test_a_process_that_was_ended_from_outside_is_no_verdict(
    tmp_path: Path, processes: Started, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lengthwise.repository.scan.REST_SECONDS", 0)
    with verifying_endlessly(tmp_path / "models", processes, Stopping()) as raised:
        os.kill(processes[0].pid, signal.SIGKILL)
        wait_until(lambda: bool(raised))
    assert isinstance(raised[0], NotVerified)
    assert "killed from outside, by SIGKILL" in str(raised[0])

    def ended(*_: object) -> verifier.Verification:
        raise NotVerified("bad/1: ended from outside")

    def looked(verify: verifier.Verifier, before: contents.Repository) -> contents.Repository:
        return Scan(tmp_path / "models", LIMITS, policy=Policy(), verify=verify, before=before).run()

    first = looked(ended, contents.Repository())
    assert [refusal.reason for refusal in first.refused] == ["bad/1: ended from outside"]
    verified = []

    def bad(*_: object) -> verifier.Verification:
        verified.append(1)
        raise ModelError("bad/1: it is bad")

    second = looked(bad, first)
    assert [refusal.reason for refusal in second.refused] == ["bad/1: it is bad"]
    assert looked(bad, second).refused == second.refused
    assert verified == [1]


def test_a_stop_ends_the_process_long_before_its_time(tmp_path: Path, processes: Started):
    stopping = Stopping()
    with verifying_endlessly(tmp_path, processes, stopping) as raised:
        stopping.stop()
        wait_until(lambda: bool(raised))
    assert isinstance(raised[0], Stopped)
    assert not proc.is_there(processes[0].pid)


def test_a_stop_that_came_before_starts_nothing_that_lasts(tmp_path: Path, processes: Started):
    stopping = Stopping()
    stopping.stop()
    with pytest.raises(Stopped):
        loading.load(place(tmp_path), LIMITS, verify=VerificationProcess(600, 2**30), stopping=stopping)
    assert not any(proc.is_there(process.pid) for process in processes)


def test_the_process_has_no_secret_no_open_file_and_a_lower_priority(
    tmp_path: Path, processes: Started, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setenv("LENGTHWISE_API_KEYS_FILE", "a-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    with (tmp_path / "secret").open() as secret:
        os.set_inheritable(secret.fileno(), True)
        with verifying_endlessly(tmp_path, processes, Stopping()):
            about = proc.of(processes[0].pid)
            wait_until(lambda: "1000" in (about / "oom_score_adj").read_text())  # it has begun
            environment = (about / "environ").read_bytes()
            assert b"a-secret" not in environment
            assert b"ORT_DISABLE_TELEMETRY=1" in environment.split(b"\0")
            held = set[str]()
            for file in (about / "fd").iterdir():
                with suppress(FileNotFoundError):  # one that it closes while this looks on
                    held.add(os.readlink(file))
            nice = int(proc.fields(processes[0].pid)[16])
    assert str(tmp_path / "secret") not in held
    assert not [file for file in held if file.startswith("socket:")]
    assert nice == min(19, os.nice(0) + modest.NICER)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems end it at its time only")
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path):
    directory = place_graph(tmp_path, hostile_models.endless)
    program = (
        "import sys; from pathlib import Path; from lengthwise.repository import verification_process, loading;"
        "from lengthwise.batching.limits import BatchLimits; start = verification_process.waiting_process\n"
        "def watched():\n"
        "    process = start(); print(process.pid, flush=True); return process\n"
        "verification_process.waiting_process = watched\n"
        "loading.load(Path(sys.argv[1]), BatchLimits(), verify=verification_process.VerificationProcess(600, 2**30))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: "verification_child" in (proc.of(pid) / "cmdline").read_text())
        wait_until(lambda: "1000" in (proc.of(pid) / "oom_score_adj").read_text())
        assert proc.is_there(pid)
        parent.kill()
    wait_until(lambda: not proc.is_there(pid))


def test_where_no_process_can_be_started_it_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(NotVerified):
        loading.load(place(tmp_path), LIMITS, verify=VerificationProcess(600, 2**30))


@pytest.mark.parametrize("told", [b"", b"[1]", b"[" * 100_000, b'{"accepted": {}}', b'{"accepted": {"promise": {}}}'])
def test_an_answer_without_sense_is_a_refusal(told: bytes):
    with pytest.raises(ModelError):
        VerificationProcess(1, 1).read_verdict("m/1", 0, told, b"", 1)


@pytest.mark.long
@pytest.mark.parametrize("verify", [VerificationProcess(600, 2**30), verifier.verify])
def test_a_model_that_a_device_has_no_memory_for_is_tried_again(tmp_path: Path, verify: verifier.Verifier):
    with pytest.raises(NotVerified, match=r"GPU 0: cudaHostAlloc failed: .* \(error 2\)"):
        loading.load(place(tmp_path), LIMITS, devices=fake_device.FULL, verify=verify)


@pytest.mark.long
def test_the_limit_of_the_process_is_named_beside_a_device_too(tmp_path: Path):
    with pytest.raises(ModelError, match=r"more than 1073741824 bytes \(--judge-memory-bytes\)") as raised:
        loading.load(place(tmp_path), LIMITS, devices=fake_device.SPENT, verify=VerificationProcess(600, 2**30))
    assert not isinstance(raised.value, NotVerified)


@pytest.mark.long
def test_a_device_that_is_full_at_the_warm_up_is_tried_again(tmp_path: Path):
    failing = ""

    def load_library(_name: str) -> fake_device.FakeRuntime:
        runtime = fake_device.FakeRuntime(failing)
        runtime.cudaGetErrorString = lambda code: b"out of memory"
        return runtime

    def verify(task: VerificationTask, stopping: Stopping) -> verifier.Verification:
        nonlocal failing
        verification = verifier.verify(task, stopping)
        failing = "cudaHostAlloc"  # from here on, another process has the memory
        return verification.model_copy(update={"session": None})

    devices = (replace(fake_device.ONE[0], provider=replace(fake_device.FAKE, load_library=load_library)),)
    with pytest.raises(NotVerified, match=r"run here: GPU 0: cudaHostAlloc failed: out of memory \(error 2\)"):
        loading.load(place(tmp_path), LIMITS, devices=devices, verify=verify)


@pytest.mark.parametrize("told", [b"null", b"5", b"[1]", b'[["a", "b", "c"]]', b'[[1e999, "b", "c"]]'])
def test_a_log_without_sense_changes_no_verdict(told: bytes):
    with pytest.raises(ModelError, match="m/1: no"):
        VerificationProcess(1, 1).read_verdict("m/1", 0, b'{"refused": "m/1: no", "log": ' + told + b"}", b"", 1)


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("NotVerified", NotVerified), ("VerificationError", VerificationError), ("OSError", ModelError), ([], ModelError)],
)
def test_a_refusal_there_is_of_its_kind_here(kind: object, raised: type[ModelError]):
    told = json.dumps({"refused": "m/1: no", "kind": kind}).encode()
    with pytest.raises(ModelError, match="m/1: no") as caught:
        VerificationProcess(1, 1).read_verdict("m/1", 0, told, b"", 1)
    assert type(caught.value) is raised


def test_a_graph_that_is_replaced_while_it_is_verified_is_not_what_is_opened(tmp_path: Path):
    directory = place(tmp_path, max_length=64)

    def verify(task: VerificationTask, stopping: Stopping) -> verifier.Verification:
        (directory / "model.onnx").write_bytes(b"another graph")
        verified = verifier.verify(task, stopping)
        return verified.model_copy(update={"session": None})

    model = loading.load(directory, LIMITS, budget_seconds=0.01, verify=verify)
    good = loading.load(BUNDLED, BatchLimits(4, 64), budget_seconds=0.01)
    assert model.session.kernels == good.session.kernels
    with pytest.raises(VerificationError):
        loading.load(directory, LIMITS)


def test_a_signal_for_the_group_of_the_service_does_not_reach_the_process() -> None:
    # Ctrl-C in a terminal is one: the service ends the process itself, and nothing is said to have been killed
    with verification_process.waiting_process() as process:
        assert os.getpgid(process.pid) not in (os.getpgid(0), 0)
        process.kill()


@pytest.fixture
def early(folder_of_a_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """The process that was started early for a folder, until something takes it or the test ends."""
    monkeypatch.setattr(modest, "memory_left_bytes", lambda: None)
    verification_process.begin_process(folder_of_a_model)
    (process,) = verification_process.early
    yield process
    verification_process.end_unused_process()
    with process:
        process.kill()


@pytest.fixture
def folder_of_a_model(tmp_path: Path) -> Path:
    place(tmp_path)
    return tmp_path


@pytest.mark.long
def test_the_first_model_is_verified_by_the_process_that_was_started_early(
    folder_of_a_model: Path, early: subprocess.Popen[bytes], processes: Started
) -> None:
    directory, verify = folder_of_a_model / "vowels" / "1", VerificationProcess(600, 2**30)
    assert loading.load(directory, LIMITS, budget_seconds=0.01, verify=verify).promise is not None
    assert loading.load(directory, LIMITS, budget_seconds=0.01, verify=verify).promise is not None
    first, second = processes
    assert first is early
    assert second.pid != early.pid
    assert (first.returncode, second.returncode) == (0, 0)


@pytest.mark.long
def test_one_that_was_started_early_and_has_ended_is_not_used(
    folder_of_a_model: Path, early: subprocess.Popen[bytes], processes: Started
) -> None:
    early.kill()
    early.wait()
    loading.load(
        folder_of_a_model / "vowels" / "1", LIMITS, budget_seconds=0.01, verify=VerificationProcess(600, 2**30)
    )
    assert [process.returncode for process in processes] == [0]
    assert processes[0] is not early


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process")
def test_one_that_was_started_early_gets_the_limits_of_its_task(
    tmp_path: Path, early: subprocess.Popen[bytes], processes: Started
) -> None:
    with pytest.raises(ModelError, match=f"ran out of memory: it takes more than {256 * MEBIBYTE} bytes"):
        loading.load(
            place_graph(tmp_path, hostile_models.greedy), LIMITS, verify=VerificationProcess(600, 256 * MEBIBYTE)
        )
    assert processes == [early]


def test_one_that_ended_before_its_task_was_killed_and_tried_again(
    folder_of_a_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = verification_process.waiting_process()
    process.kill()
    process.wait()
    monkeypatch.setattr(verification_process, "waiting_process", lambda: process)
    with pytest.raises(NotVerified, match="was killed from outside, by SIGKILL"):
        loading.load(folder_of_a_model / "vowels" / "1", LIMITS, verify=VerificationProcess(600, 2**30))


@pytest.mark.long
def test_one_that_gets_no_end_ends_itself_some_seconds_after_its_time(early: subprocess.Popen[bytes]) -> None:
    assert early.stdin is not None
    early.stdin.write(pickle.dumps((1 - modest.LATER_SECONDS, 2**30)))  # and no task: it waits for one
    early.stdin.flush()
    assert early.wait(PATIENCE_SECONDS) == -signal.SIGALRM


def test_one_that_no_model_needed_is_ended(early: subprocess.Popen[bytes]) -> None:
    verification_process.end_unused_process()
    assert early.returncode == -signal.SIGKILL  # and it is no zombie
    verification_process.end_unused_process()  # nothing is left to end


def test_one_that_cannot_be_started_early_is_no_error_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    verification_process.begin_process(tmp_path)
    assert not verification_process.early


def test_none_is_started_early_where_little_memory_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modest, "memory_left_bytes", lambda: 320 * MEBIBYTE)
    verification_process.begin_process(tmp_path)
    assert not verification_process.early


def test_none_is_started_early_for_the_bundled_models() -> None:
    verification_process.begin_process(files.bundled_models())
    assert not verification_process.early


@pytest.mark.long
def test_one_that_waits_ends_when_nobody_can_send_it_a_task_any_more(early: subprocess.Popen[bytes]) -> None:
    assert early.stdin is not None
    early.stdin.close()
    assert early.wait(PATIENCE_SECONDS) is not None
