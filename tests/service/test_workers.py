"""Several processes that serve together: each may end at any time, and the service is one all the while."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.cores import served
from lengthwise.bench.launch import free_port
from lengthwise.errors import ConfigurationError
from lengthwise.files import available_cores
from lengthwise.processes.shared_memory import SharedMemory
from lengthwise.processes.supervisor import EARLY_SECONDS, MOST_EARLY
from lengthwise.settings import LEAST_BODIES, Settings, bundled_models
from tests.support import prepared, proc
from tests.support.model_directories import place
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, exit_of, request, started
from tests.support.waiting import wait_until
from tests.support.workers import GOOD, Workers, until_said

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with started("--workers", "2", "--admin-calls") as process:
        yield process


@pytest.fixture
def workers(server: ServerProcess) -> Workers:
    found = Workers(server)
    found.ready()
    return found


def answered(server: ServerProcess) -> float:
    """Calls that were answered, by the sum of the metrics."""
    return sum(number for name, number in server.figures().items() if re.match(r'\w+_requests_total\{code="200"', name))


def test_both_serve_with_a_share_of_the_bounds_and_their_metrics_are_one(workers: Workers) -> None:
    server = workers.server
    found = workers()
    assert len({one["pid"] for one in found} | {server.process.pid}) == 3
    assert [one["restarts"] for one in found] == [0, 0]
    assert all(0 <= time.time() - one["started"] < 3600 for one in found)
    before = answered(server)
    assert {server.predict(GOOD).status_code for _ in range(20)} == {200}
    figures = server.figures()
    assert answered(server) == before + 20
    assert figures["lengthwise_max_queue_cost_steps"] == 1_000_000
    assert figures["lengthwise_max_inflight_bytes"] == Settings().max_inflight_bytes
    assert figures["lengthwise_runners"] == 2 * max(1, available_cores() // 2)
    assert figures['lengthwise_ready{model="japanese-vowels",version="1"}'] == 1
    assert figures["lengthwise_worker_restarts_total"] == 0


def test_the_statistics_of_v2_are_of_all_workers(workers: Workers) -> None:
    server, path = workers.server, "/v2/models/japanese-vowels/stats"

    def counts() -> tuple[int, int, int, int]:
        (found,) = server.get(path).json()["model_stats"]
        of_batches = sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in found["batch_stats"])
        assert (found["name"], found["version"]) == ("japanese-vowels", "1")
        assert len({batch["batch_size"] for batch in found["batch_stats"]}) == len(found["batch_stats"])
        success = found["inference_stats"]["success"]["count"]
        return found["inference_count"], found["execution_count"], of_batches, success

    before = counts()
    for _ in range(20):
        assert server.predict(GOOD).status_code == 200
    after = tuple(count + 20 for count in before)
    wait_until(lambda: counts() == after, server.text.strip)  # a batch is counted a moment after its answers
    assert {counts() for _ in range(10)} == {after}


def test_a_few_connections_that_stay_are_spread(workers: Workers) -> None:
    server, held = workers.server, [0, 0]
    with ExitStack() as wires:
        for _ in range(16):  # four, where no other process keeps a worker from its socket
            wire = wires.enter_context(server.connect())
            wire.send(request(GOOD))
            assert wire.answer()[0] == 200
            held = [proc.connections(one["pid"], server.port) for one in workers()]
            if min(held) >= 2:
                break
    assert min(held) >= 2, held


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_under_load_takes_its_own_calls_only(workers: Workers, number: signal.Signals) -> None:
    server = workers.server
    expected = server.predict(GOOD).json()
    before, reset, got = answered(server), [], []
    gone = workers()[0]["pid"]
    restarts = server.figures()["lengthwise_worker_restarts_total"]

    def call(_: int) -> None:
        try:
            with httpx2.Client(timeout=PATIENCE_SECONDS, trust_env=False, verify=False) as client:
                answer = client.post(f"{server.url}/predict", json=GOOD)
        except httpx2.TransportError as error:
            reset.append(error)
            return
        if answer.status_code == 200:
            assert answer.json() == expected
        got.append(answer.status_code)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, index) for index in range(400)]
        while len(got) < 100:
            assert not all(one.done() for one in calls), (got, reset)
        os.kill(gone, number)
        for one in calls:
            one.result()
    after = workers.replaced(gone)
    assert {*got} <= ({200} if number == signal.SIGKILL else {200, 503})
    assert len(reset) <= (8 if number == signal.SIGKILL else 0), reset
    uncounted = 8 if number == signal.SIGKILL else 0  # a worker answers first, and may be killed before it counts
    # On a busy machine a worker may give its last figures: its own ones are then a moment late
    wait_until(lambda: -uncounted <= answered(server) - before - got.count(200) <= len(reset), server.text.strip)
    assert server.figures()["lengthwise_worker_restarts_total"] == restarts + 1
    assert sum(one["restarts"] for one in after) == restarts + 1


@pytest.mark.long
def test_a_worker_in_the_place_of_another_and_the_others_serve_the_same_versions(tmp_path: Path) -> None:
    place(tmp_path / "models")
    with started(str(tmp_path / "models"), "--workers", "2") as server:
        workers = Workers(server)
        pid = workers.ready()[0]["pid"]
        place(tmp_path / "models", version=2)  # not read until a reload
        os.kill(pid, signal.SIGKILL)
        workers.replaced(pid)
        until_said(server, "vowels/2 is ready", 2)
        wait_until(lambda: {server.predict(GOOD).json()["version"] for _ in range(12)} == {"2"}, server.text.strip)


@pytest.mark.long
def test_a_new_worker_that_finds_no_model_takes_none_from_the_others(tmp_path: Path) -> None:
    directory = place(tmp_path / "models").parent
    with started(str(tmp_path / "models"), "--workers", "2") as server:
        workers = Workers(server)
        pid = workers.ready()[0]["pid"]
        directory.rename(tmp_path / "away")
        os.kill(pid, signal.SIGKILL)
        until_said(server, "no model is ready", 1)
        assert {server.predict(GOOD).status_code for _ in range(12)} == {200}


def test_an_admin_call_reaches_every_worker(workers: Workers) -> None:
    server = workers.server
    path = "/v2/repository/models/japanese-vowels/"
    first, second = (one["pid"] for one in workers())
    os.kill(second, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx2.post, f"{server.url}{path}unload", timeout=PATIENCE_SECONDS, trust_env=False)
        until_said(server, "is unloaded", 1)
        os.kill(first, signal.SIGKILL)  # another one starts all the same, and has been told
        until_said(server, "no model is ready", 1)
        os.kill(second, signal.SIGCONT)
        until_said(server, "is unloaded", 2)
        assert isinstance(asked.exception(), httpx2.TransportError)
    assert {server.predict(GOOD).status_code for _ in range(12)} == {503}
    assert server.client.post(f"{path}load").status_code == 200
    os.kill(pid := workers()[1]["pid"], signal.SIGKILL)
    workers.when(lambda found: found[1]["pid"] not in (pid, 0))  # that starts, and is told before its first scan
    assert server.client.post(f"{path}unload").status_code == 200
    assert {server.predict(GOOD).status_code for _ in range(12)} == {503}
    until_said(server, "no model is ready", 2)
    assert {server.predict(GOOD).status_code for _ in range(12)} == {503}
    assert server.client.post(f"{path}load").status_code == 200
    assert {server.predict(GOOD).status_code for _ in range(12)} == {200}
    assert server.client.post("/v2/repository/models/nobody/load").status_code == 404


@pytest.mark.long
def test_the_drain_answers_what_was_accepted_and_ends_with_0() -> None:
    with started("--workers", "2", "--drain-seconds", "170") as server:
        workers = Workers(server)
        pids = [one["pid"] for one in workers.ready()]
        wires = [server.connect() for _ in range(6)]
        for wire in wires:
            wire.send(request({"sequences": [[[0.5] * 12] * 200] * 64}))
        wait_until(lambda: sum(n for name, n in server.figures().items() if "_sequences_total{" in name) >= 6 * 64)
        server.terminate()
        assert [wire.answer()[0] for wire in wires] == [200] * 6
        for wire in wires:
            wire.__exit__()
        assert server.end() == 0
    assert not any(map(proc.is_there, pids))


@pytest.mark.long
def test_a_parent_that_is_killed_takes_its_workers_along() -> None:
    with started("--workers", "2") as server:
        pids = [one["pid"] for one in Workers(server).ready()]
        server.process.kill()
        server.end()
        wait_until(lambda: not any(map(proc.is_there, pids)))


@pytest.mark.long
def test_the_repository_is_read_again_by_all(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(bundled_models(), models)
    with started(str(models), "--workers", "2") as server:
        workers = Workers(server)
        workers.ready()
        until_said(server, "is ready on", 2)
        assert server.text.count("is ready on") == 2
        assert not re.search(r"is refused|cannot", server.text)
        shutil.rmtree(models / "japanese-vowels")
        server.process.send_signal(signal.SIGHUP)
        until_said(server, "is no longer served", 2)
        assert {server.predict(GOOD).status_code for _ in range(8)} == {503}


@pytest.mark.long
def test_five_early_deaths_of_each_worker_end_the_service() -> None:
    with started("--workers", "2") as server:
        Workers(server).ready()
        seen: set[int] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):  # one has just ended
                for pid in {*proc.children(server.process.pid, "serve")} - seen:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)
        assert server.end() == 1
        assert "no worker is ready, and each has ended 5 times early" in server.text
        assert 2 * MOST_EARLY <= len(seen) <= 2 * MOST_EARLY + 4  # the first ones may have run for longer


@pytest.mark.long
def test_a_worker_that_cannot_start_ends_it_with_its_reason(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("short")
    code, said = exit_of("--workers", "2", "--api-keys-file", str(keys))
    assert (code, said.count(str(keys)), said.count("\n")) == (2, 1, 1), said


@pytest.mark.parametrize("given", ["0", "-1", "1000", "many", "1.5"])
def test_a_number_of_workers_out_of_bounds_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="--workers"):
        Settings.load(workers=given)


@pytest.mark.long
def test_a_request_larger_than_the_share_of_a_worker_is_accepted() -> None:
    bounds = ("--max-body-bytes", str(1 << 16), "--max-inflight-bytes", str(1 << 19))
    with started("--workers", "2", *bounds) as server:
        Workers(server).ready()
        rows = {"sequences": [[[0] * 12]] * 900}  # with room for the answer, some 400 KB of 512
        answers = [server.predict(rows) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 8, answers[0].text
        assert server.figures()["lengthwise_max_inflight_bytes"] == 1 << 19


def batches(pid: int) -> Any:
    """How many batches run in each of two workers, as they note it in the memory that the parent `pid` shares."""
    files = proc.of(pid) / "fd"
    shared = next(file for file in files.iterdir() if os.readlink(file).startswith("/memfd:lengthwise"))
    with shared.open("r+b") as file:
        return SharedMemory(file.fileno(), 2).table["batches"]


@pytest.mark.long
def test_one_request_runs_on_the_cores_of_all_workers_and_frees_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LENGTHWISE_MODELS", str(prepared.models()))  # runs that sleep are long to measure
    rows = {"sequences": [[[0.5] * 12] * 100] * 2}
    command = [sys.executable, "-m", "benchmarks.variants", "sleeping-run:2:0.02", "serve", "--workers", "2"]
    with (
        served(command, "auto") as (pid, url, workers),
        httpx2.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert workers == 2
        running = batches(pid)
        answer = pool.submit(client.post, "/predict", json=rows)
        wait_until(lambda: running.max() == 2 or answer.done(), lambda: f"{running}")
        assert running.max() == 2, "one worker runs two batches"
        busy = client.get("/healthz").json()["workers"][int(running.argmax())]["pid"]
        os.kill(busy, signal.SIGKILL)
        wait_until(lambda: running.max() <= 0, lambda: f"{running}")
        with suppress(httpx2.TransportError):
            answer.result()


def test_a_share_of_a_bound_is_not_below_what_one_needs() -> None:
    options = Settings(max_connections=4096, runners=3).of_worker(100)
    assert options["max_connections"] == 40
    assert options["max_inflight_bytes"] == 100 * LEAST_BODIES * Settings().max_body_bytes  # of all of them
    assert options["max_queue_cost_steps"] == Settings().max_batch_cost_steps
    assert options["runners"] == 3
    Settings(**options)


@pytest.mark.long
def test_twenty_replacements_leave_nothing_behind() -> None:
    with started("--workers", "2") as server:
        workers = Workers(server)
        files, memory = [], []
        for number in range(20):
            found = workers.ready()
            if number in (2, 19):
                files.append(proc.open_files(server.process.pid))
                memory.append(proc.resident_bytes(server.process.pid))
            oldest = min(found, key=lambda one: one["started"])
            while time.time() - oldest["started"] <= EARLY_SECONDS:  # those that end early are too many soon
                time.sleep(0.1)
            os.kill(oldest["pid"], signal.SIGTERM if number % 3 else signal.SIGKILL)
            workers.replaced(oldest["pid"])
        assert files[1] == files[0]
        assert memory[1] < memory[0] + (8 << 20)
        assert server.figures()["lengthwise_worker_restarts_total"] == 20


@pytest.mark.long
def test_grpc_keys_and_the_admin_port_are_those_of_all_workers(tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from lengthwise.grpc import open_inference_pb2 as pb

    keys = tmp_path / "keys"
    keys.write_text("team-a: a-key-of-many-characters")
    key = {"authorization": "Bearer a-key-of-many-characters"}
    port, admin = free_port(), free_port()
    options = ("--grpc-port", str(port), "--admin-port", str(admin), "--api-keys-file", str(keys))

    def live() -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive",
                request_serializer=pb.ServerLiveRequest.SerializeToString,
                response_deserializer=pb.ServerLiveResponse.FromString,
            )
            found = call(pb.ServerLiveRequest(), metadata=[*key.items()], timeout=PATIENCE_SECONDS, wait_for_ready=True)
            return bool(found.live)

    with started("--workers", "2", *options) as server:
        of_admin = httpx2.Client(base_url=f"http://127.0.0.1:{admin}", headers=key, trust_env=False)
        with of_admin:
            assert server.predict(GOOD).status_code == 401
            assert all(live() for _ in range(6))
            found = of_admin.get("/healthz").json()["workers"]
            assert len(found) == 2
            for _ in range(6):
                assert server.client.post("/predict", json=GOOD, headers=key).status_code == 200
            six = 'lengthwise_requests_total{code="200",key="team-a",model="japanese-vowels",version="1"} 6.0'
            # A caller may have its answer before the server has counted it.
            wait_until(lambda: six in of_admin.get("/metrics").text, lambda: server.text)
            os.kill(found[0]["pid"], signal.SIGKILL)
            assert all(live() for _ in range(6))
            assert server.get("/metrics").status_code == 401
            # The parent has seen it: a worker that is killed in the drain is an end with 1.
            Workers(server, of_admin.get).when(lambda found: found[0]["restarts"] == 1)
            # By whichever worker they were counted; one that is busy may tell it later.
            wait_until(lambda: six in of_admin.get("/metrics").text, lambda: server.text)
        server.terminate()
        assert server.end() == 0
