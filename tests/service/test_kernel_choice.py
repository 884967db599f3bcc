"""Which kernels serve: the faster ones, the same at every load, and those that were asked for."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lengthwise.repository import kernel_choice, loading, stored_measurements
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU, TIMED_CPU, Device, choose
from lengthwise.runtime.recurrent_kernels import ONNXRUNTIME, POOLING
from lengthwise.runtime.session import Session
from lengthwise.settings import Settings
from tests.support import model_directories
from tests.support.model_directories import LIMITS

pytestmark = pytest.mark.skipif(
    not recurrent_kernels.INSTRUCTION_SETS, reason="no compiler at installation, or neither AVX2 nor AVX-512"
)

OWN = next(iter(recurrent_kernels.INSTRUCTION_SETS), "") + POOLING


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.measure_quickly(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A writable copy of the bundled model, for sequences that are soon verified."""
    return model_directories.place(tmp_path, max_length=64)


def load(directory: Path, device: Device = TIMED_CPU) -> LoadedModel:
    return loading.load(directory, LIMITS, devices=(device,))


def take(monkeypatch: pytest.MonkeyPatch, ratio: float) -> list[float]:
    """Has Lengthwise's kernels take this many times as long; the list grows with each measurement."""
    asked: list[float] = []

    def measured(*given: object) -> float:
        asked.append(ratio)
        return ratio

    monkeypatch.setattr(kernel_choice, "time_ratio", measured)
    return asked


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("ratio", "kernels"), [(0.5, OWN), (1.0, OWN), (1.09, OWN), (1.2, ONNXRUNTIME), (9.0, ONNXRUNTIME)]
)
def test_the_faster_kernels_serve_and_near_a_tie_lengthwises(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, kernels: str, caplog: pytest.LogCaptureFixture
):
    take(monkeypatch, ratio)
    with caplog.at_level(logging.INFO):
        model = load(directory)
    assert model.session.kernels == kernels
    assert model.promise is not None
    assert model.promise.bits
    assert f"run in the kernels of {kernels}" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_next_load_has_the_same_kernels_whatever_it_would_measure(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
):
    take(monkeypatch, ratio)
    first = load(directory).session.kernels
    asked = take(monkeypatch, 1 / ratio)
    assert load(directory).session.kernels == first
    assert asked == []


@pytest.mark.long
def test_under_other_conditions_they_are_timed_again(directory: Path, monkeypatch: pytest.MonkeyPatch):
    take(monkeypatch, 2.0)
    load(directory)
    monkeypatch.setattr(stored_measurements, "processor", lambda: "another")
    take(monkeypatch, 0.5)
    assert load(directory).session.kernels == OWN


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'{"kernels": 3}', b'{"kernels": "onnxruntime"}'),
        *(b'{"kernels": "avx9", "conditions": {}}', b"\xff"),
    ],
)
def test_a_file_that_says_nothing_is_ignored(directory: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    (directory / stored_measurements.KERNELS_FILE).write_bytes(content)
    asked = take(monkeypatch, 0.5)
    assert load(directory).session.kernels == OWN
    assert asked
    assert json.loads((directory / stored_measurements.KERNELS_FILE).read_text())["kernels"] == OWN


@pytest.mark.long
def test_kernels_that_were_not_measured_are_no_choice(directory: Path, monkeypatch: pytest.MonkeyPatch):
    take(monkeypatch, 0.5)
    load(directory)
    stored = json.loads((directory / stored_measurements.KERNELS_FILE).read_text())
    (directory / stored_measurements.KERNELS_FILE).write_text(json.dumps(stored | {"kernels": "avx1024"}))
    asked = take(monkeypatch, 2.0)
    assert load(directory).session.kernels == ONNXRUNTIME
    assert asked


@pytest.mark.parametrize(("device", "kernels"), [(CPU_DEVICE, OWN), (PLAIN_CPU, ONNXRUNTIME)])
def test_what_was_asked_for_serves_and_nothing_is_timed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, device: Device, kernels: str
):
    asked = take(monkeypatch, 2.0 if device is CPU_DEVICE else 0.5)
    assert load(directory, device).session.kernels == kernels
    assert asked == []
    assert not (directory / stored_measurements.KERNELS_FILE).exists()


def test_the_option_forces_either_or_neither():
    assert choose("cpu").devices == (TIMED_CPU,)
    assert choose("cpu", recurrent_kernels=True).devices == (CPU_DEVICE,)
    assert choose("cpu", recurrent_kernels=False).devices == (PLAIN_CPU,)
    assert Settings().recurrent_kernels is None


def test_where_onnxruntimes_kernels_would_be_refused_nothing_is_timed(directory: Path, monkeypatch: pytest.MonkeyPatch):
    from lengthwise.errors import ModelError
    from lengthwise.repository import verifier

    def refused(graph: object, kernels: str, manifest: object) -> None:
        if kernels == ONNXRUNTIME:
            raise ModelError("a client can end the process")

    monkeypatch.setattr(verifier, "check_rows", refused)
    asked = take(monkeypatch, 9.0)
    assert load(directory).session.kernels == OWN
    assert asked == []


def test_the_times_of_a_session_beside_itself_are_about_equal(directory: Path):
    model = load(directory, CPU_DEVICE)
    assert 0.2 < kernel_choice.time_ratio(model.session, model.session, model.manifest) < 5


class TimedSession:
    """A session of which each run takes so many seconds on a clock that both share."""

    now = 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def clock(self) -> float:
        return TimedSession.now

    def run(self, _batch: object) -> None:
        self.runs += 1
        TimedSession.now += self.seconds


@pytest.mark.parametrize(
    ("own", "plain", "runs"),
    [(0.001, 0.001, 15), (0.001, 0.004, 6), (0.004, 0.001, 6), (0.02, 0.02, 4), (0.2, 0.9, 3), (0.9, 0.2, 3)],
)
def test_a_clear_choice_takes_two_turns_and_a_slow_one_a_single(own: float, plain: float, runs: int):
    sessions: Any = TimedSession(own), TimedSession(plain)
    assert kernel_choice.time_ratio(*sessions, Manifest.read(model_directories.BUNDLED)) == pytest.approx(own / plain)
    assert [session.runs for session in sessions] == [runs, runs]


def test_a_graph_that_runs_in_onnxruntimes_only_is_not_timed(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recurrent_kernels, "INSTRUCTION_SETS", ())
    asked = take(monkeypatch, 9.0)
    model = load(directory)
    assert isinstance(model.session, Session)
    assert model.session.kernels == ONNXRUNTIME
    assert asked == []
