"""What is promised on the device that serves, and what happens where it is not kept."""

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import VerificationError
from lengthwise.padding import PaddedBatch
from lengthwise.repository import loading, verifier
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime import recurrent_kernels
from lengthwise.runtime.manifest import Manifest, Promise
from lengthwise.runtime.provider import CPU_DEVICE, PLAIN_CPU
from lengthwise.runtime.session import CPU_LABEL, Outputs, Session
from lengthwise.verification import promises
from tests.support import model_directories
from tests.support.fake_device import ONE
from tests.support.model_directories import LIMITS

ELSEWHERE = "ImaginedExecutionProvider, Device 9000"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    model_directories.measure_quickly(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return model_directories.place(tmp_path, max_length=64, proved=False)


Load = Callable[..., LoadedModel]


@pytest.fixture
def load(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the model on another device: there every logit is off by `everywhere`, and by `company` more in company."""

    def loaded(*, company: float = 0.0, everywhere: float = 0.0, provider: str = ELSEWHERE) -> LoadedModel:
        class Elsewhere(Session):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self.provider = provider

            def run(self, batch: PaddedBatch, outputs: Any = ("logits",)) -> Outputs:
                found = super().run(batch, outputs)
                off = np.float32(everywhere + (company if batch.rows > 1 else 0.0))
                return Outputs(found.logits + off, found.attention)

        monkeypatch.setattr(verifier, "Session", Elsewhere)
        return loading.load(directory, LIMITS)

    return loaded


def prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify_here(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("proved")

    monkeypatch.setattr(promises, "verify_here", verify_here)


def kept(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / promises.FILE).read_text())["promises"]
    return found


def test_a_model_is_verified_on_a_new_device_and_the_result_is_kept(directory: Path, load: Load) -> None:
    promise = load(company=2**-16).promise
    assert promise is not None
    assert (promise.provider, promise.bits) == (ELSEWHERE, False)
    assert promise.seen == pytest.approx(2**-16, rel=0.1)
    assert promise.tolerance == promises.HEADROOM * promise.seen
    (entry,) = kept(directory)
    assert Promise.model_validate(entry["promise"]) == promise
    assert entry["conditions"]["provider"] == ELSEWHERE
    assert {case["provider"] for case in entry["cases"]} == {ELSEWHERE}
    assert {"company", "width", "padding", "neighbours", "order"} <= {case["varied"] for case in entry["cases"]}


def test_a_device_proves_through_the_buffers_that_it_will_serve_with(directory: Path) -> None:
    model = loading.load(directory, LIMITS, devices=ONE)
    assert model.session.bound
    assert model.promise is not None
    assert (model.promise.provider, model.promise.bits) == (ONE[0].label, True)
    assert [entry["conditions"]["provider"] for entry in kept(directory)] == [ONE[0].label]


def test_bits_are_promised_where_no_bit_moved(load: Load) -> None:
    promise = load(everywhere=2**-12).promise
    assert promise is not None
    assert (promise.bits, promise.tolerance) == (True, 0.0)
    assert promise.golden == pytest.approx(promises.HEADROOM * 2**-12, rel=0.1)


def test_the_next_start_proves_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(company=2**-16, everywhere=2**-12).promise
    prove_nothing(monkeypatch)
    assert load(company=2**-16, everywhere=2**-12).promise == first


def test_a_model_that_its_manifest_promises_for_the_device_is_not_proved_again(
    directory: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = {"provider": ELSEWHERE, "bits": False, "tolerance": 1e-4}
    model_directories.sign(directory, promises=[promise])
    prove_nothing(monkeypatch)
    assert load(company=2**-16).promise == Promise(**promise)
    assert not (directory / promises.FILE).exists()


@pytest.mark.parametrize(("first", "then"), [(0.0, 2**-18), (2**-16, 2**-14)], ids=["bits", "a tolerance"])
def test_a_model_that_breaks_the_promise_of_its_device_is_refused_with_the_figures(
    load: Load, first: float, then: float
) -> None:
    load(company=first)
    with pytest.raises(VerificationError):
        load(company=then)


@pytest.mark.parametrize("off", [{"company": 0.1}, {"everywhere": 0.05}], ids=["too far", "another graph"])
def test_a_device_that_moves_answers_too_far_serves_nothing(directory: Path, load: Load, off: dict[str, float]) -> None:
    with pytest.raises(VerificationError):
        load(**off)
    assert not (directory / promises.FILE).exists()


@pytest.mark.long
def test_a_promise_that_cannot_be_kept_is_made_at_every_start(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*arguments: Any) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(promises, "store", write)
    caplog.set_level(logging.INFO)
    first = load(company=2**-16)
    assert "(Read-only file system): every start verifies and measures it again" in caplog.text
    assert load(company=2**-16).promise == first.promise


def test_a_processor_that_does_not_keep_the_exporters_bits_states_its_own_tolerance(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    promise = load(company=2**-16, provider=CPU_LABEL).promise
    assert "it is verified again on this processor" in caplog.text
    assert promise is not None
    assert (promise.provider, promise.bits) == (CPU_LABEL, False)
    with pytest.raises(VerificationError):
        load(company=2**-14, provider=CPU_LABEL)


def test_the_processor_that_keeps_the_bits_is_served_under_the_manifests_promise(directory: Path) -> None:
    kernels = Session.load(directory, Manifest.read(directory)).kernels
    model_directories.sign(directory, made={promises.KERNELS: kernels})
    assert loading.load(directory, LIMITS).promise == Manifest.read(directory).promise(CPU_LABEL)
    assert not (directory / promises.FILE).exists()


@pytest.mark.long
@pytest.mark.sampled(2)
@pytest.mark.skipif(not recurrent_kernels.INSTRUCTION_SETS, reason="this processor has onnxruntime's kernels only")
@pytest.mark.parametrize("of_the_exporter", [None, "another"], ids=["unknown", "others"])
def test_a_promise_that_was_measured_in_other_kernels_is_proved_anew(
    directory: Path, monkeypatch: pytest.MonkeyPatch, of_the_exporter: str | None
) -> None:
    made = {} if of_the_exporter is None else {promises.KERNELS: of_the_exporter}
    model_directories.sign(directory, made=made)
    found = [loading.load(directory, LIMITS, devices=(device,)) for device in (CPU_DEVICE, PLAIN_CPU)]
    kernels = [model.session.kernels for model in found]
    own = recurrent_kernels.INSTRUCTION_SETS[0] + recurrent_kernels.POOLING
    assert kernels == [own, recurrent_kernels.ONNXRUNTIME]
    assert [entry["conditions"]["recurrent_kernels"] for entry in kept(directory)] == kernels
    prove_nothing(monkeypatch)
    again = [loading.load(directory, LIMITS, devices=(device,)).promise for device in (CPU_DEVICE, PLAIN_CPU)]
    assert again == [model.promise for model in found]


def test_the_installed_model_is_proved_and_nothing_is_written_beside_it() -> None:
    before = loading.directory_state(model_directories.BUNDLED)
    promise = loading.load(model_directories.BUNDLED, LIMITS).promise
    assert promise is not None
    assert (promise.bits, loading.directory_state(model_directories.BUNDLED)) == (True, before)


@pytest.mark.long
def test_promises_of_several_devices_are_kept_beside_each_other(directory: Path, load: Load) -> None:
    for provider in (ELSEWHERE, "Another", ELSEWHERE):
        load(provider=provider)
    assert [entry["conditions"]["provider"] for entry in kept(directory)] == [ELSEWHERE, "Another"]
    # They are no bytes of the graph
    assert loading.graph_bytes(loading.directory_state(directory)) == (directory / "model.onnx").stat().st_size


def test_the_graph_of_a_mounted_config_map_counts_once(directory: Path) -> None:
    size = (directory / "model.onnx").stat().st_size
    (directory / "..2026").mkdir()
    (directory / "..data").symlink_to("..2026")
    for path in [path for path in directory.iterdir() if path.is_file()]:
        path.rename(directory / "..2026" / path.name)
        path.symlink_to(f"..data/{path.name}")
    assert loading.graph_bytes(loading.directory_state(directory)) == size


@pytest.mark.sampled(6)
@pytest.mark.parametrize("content", ["", "[]", '{"promises": [{}]}', '{"promises": 1}', "[" * 100_000, "\xff"])
def test_a_spoilt_file_is_passed_over_and_the_model_proved_anew(
    directory: Path, load: Load, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (directory / promises.FILE).write_bytes(content.encode("latin-1"))
    assert load().promise is not None
    assert "is ignored" in caplog.text
    assert len(kept(directory)) == 1
