"""A service whose repository has models that do harm: it goes on answering, starts, and ends in time."""

import contextlib
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lengthwise.repository.verification_process import VerificationProcess
from lengthwise.repository.verifier import verify as verify_here
from lengthwise.serving import Serving
from lengthwise.settings import Settings
from tests.support import hostile_models, proc
from tests.support.hostile_models import Made, place_graph
from tests.support.model_directories import place
from tests.support.server_process import PATIENCE_SECONDS, ServerProcess, started

pytestmark = pytest.mark.process

BODY = {"sequences": [[[0.5] * 12] * 3], "model": "vowels"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place(tmp_path / "models", max_length=64)
    return tmp_path / "models"


def serve(folder: Path, *options: str) -> tuple[str, ...]:
    return (str(folder), "--runners", "1", "--admin-calls", "--max-batch-rows", "4", *options)


def reason(server: ServerProcess, path: str) -> str:
    """Why a version is not served."""
    entries = server.client.post("/v2/repository/index").json()
    return str(next(each["reason"] for each in entries if f"{each['name']}/{each['version']}" == path))


@contextmanager
def asked_all_the_while(server: ServerProcess) -> Iterator[Counter[int]]:
    """Asks one request after the other while the block runs, and counts the answers."""
    codes: Counter[int] = Counter()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                codes[server.predict(BODY).status_code] += 1
            except Exception:
                codes[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield codes
    finally:
        done.set()
        thread.join(PATIENCE_SECONDS)


def load(server: ServerProcess, name: str) -> tuple[int, str]:
    answer = server.client.post(f"/v2/repository/models/{name}/load")
    return answer.status_code, str(answer.json().get("error", ""))


@pytest.mark.long
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (hostile_models.rows_chosen_by_lengths, "the process that verified it was ended by SIG"),
        (hostile_models.rows_chosen_by_values, "decides how many rows its LSTM gets"),
        (hostile_models.endless, "verifying it timed out after 60 s"),
        (hostile_models.greedy, "verifying it ran out of memory"),
    ],
)
@pytest.mark.parametrize("when", ["at the start", pytest.param("at a reload", marks=pytest.mark.long)])
def test_a_graph_that_does_harm_is_refused_while_the_service_answers(
    folder: Path, made: Made, said: str, when: str
) -> None:
    options = ("--judge-timeout-seconds", "60", "--judge-memory-bytes", str(2**29))
    if when == "at the start":
        place_graph(folder, made)
    with started(*serve(folder, *options)) as server:
        assert server.predict(BODY).status_code == 200
        if when == "at a reload":
            place_graph(folder, made)
            place(folder, version=2, max_length=64)
            with asked_all_the_while(server) as codes:
                server.process.send_signal(signal.SIGHUP)
                server.wait_for("vowels/2 is ready on")
                assert load(server, "vowels") == (200, "")  # one change at a time: that one is made
            assert set(codes) == {200}
            assert server.predict(BODY).json()["version"] == "2"
        assert said in reason(server, "bad/1")
        assert said in load(server, "bad")[1]
        assert server.get("/readyz").status_code == 200


def _verifying(pid: int) -> list[int]:
    with contextlib.suppress(OSError):  # it has just ended
        return proc.children(pid, "verification_child")
    return []


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.parametrize("when", ["at the start", "at a reload"])
def test_a_signal_while_a_graph_hangs_ends_the_service_in_time(folder: Path, when: str) -> None:
    options = serve(folder, "--drain-seconds", "2", "--judge-timeout-seconds", "600")
    place_graph(folder, hostile_models.endless, "hanging") if when == "at the start" else None
    server = ServerProcess(*options)
    try:
        if when == "at a reload":
            server.wait_for("vowels/1 is ready on")
            place_graph(folder, hostile_models.endless, "hanging")
            server.process.send_signal(signal.SIGHUP)
        else:
            server.wait_for("listening on")
        end = time.monotonic() + PATIENCE_SECONDS
        while not (pids := [pid for one in proc.serving(server.process.pid) for pid in _verifying(one)]):
            assert time.monotonic() < end, server.text
            time.sleep(0.01)
        before = time.monotonic()
        server.terminate()
        assert server.end() == 0, server.text
        assert (
            time.monotonic() - before < 120
        )  # the drain's two seconds and a busy machine; verification has ten minutes
        assert not [pid for pid in pids if proc.is_there(pid)]
    finally:
        server.kill()


def test_the_bundled_model_is_verified_in_the_service_and_others_are_not(folder: Path) -> None:
    def verifier(**options: object) -> object:
        return Serving(Settings(**options)).verify  # type: ignore[arg-type]

    assert verifier() is verify_here
    assert isinstance(verifier(models=folder), VerificationProcess)


@pytest.mark.long
def test_the_bundled_model_answers_after_little_work() -> None:
    with started("--runners", "1", quickly=False) as server:
        assert server.predict({"sequences": [[[0.5] * 12] * 3]}).status_code == 200
        own = proc.processor_seconds(server.process.pid)
        assert proc.processor_seconds(server.process.pid, of_children=True) == 0
    assert own < 6  # about 1.7 s, on a processor that a busy machine slows


@pytest.mark.long
def test_many_versions_that_are_being_verified_hold_no_end(folder: Path) -> None:
    for number in range(30):
        shutil.copytree(folder / "vowels", folder / f"copy-{number}")
    server = ServerProcess(*serve(folder, "--drain-seconds", "2"))
    try:
        server.wait_for("copy-0/1: ")
        before = time.monotonic()
        server.terminate()
        assert server.end() == 0, server.text
        assert time.monotonic() - before < 120
    finally:
        server.kill()
