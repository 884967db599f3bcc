"""The measurement of a GPU, on the CPU: all of its code runs, and says of itself that it is no GPU's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device, packed, parity, placement, stage, throughput
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.prepare import prepare
from benchmarks.gpu.section import SECTIONS
from benchmarks.gpu.stage import Stage
from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError, VerificationError
from lengthwise.padding import Steps
from lengthwise.repository import loading
from lengthwise.runtime.provider import Device
from lengthwise.telemetry.metrics import ModelMetrics
from tests.support.fake_device import ONE

NOT_ON_A_BARE_MACHINE = (
    "click",
    "fastapi",
    "httptools",
    "matplotlib",
    "mosec",
    "pydantic_settings",
    "rich",
    "starlette",
    "uvicorn",
    "uvloop",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs, as `--prepare` makes them."""
    folder = tmp_path_factory.mktemp("gpu-models")
    lines = [*prepare(folder)]
    assert not [line for line in lines if line.startswith("NOT made")], lines
    return folder


@pytest.mark.long
def test_every_section_has_its_figures(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "cpu.json"
    arguments = ["--provider", "cpu", "--quick", "--models", str(models), "--out", str(out)]
    code = command.main(arguments)
    results = json.loads(out.read_bytes())
    assert {name: found["status"] for name, found in results["sections"].items()} == {
        section.name: "measured" for section in SECTIONS
    }, capsys.readouterr().err
    assert code == 0
    text = capsys.readouterr().out
    assert text == out.with_suffix(".md").read_text()
    assert text.startswith("Measured at commit ")
    assert "no figure here is of a GPU" in text
    assert "are incomplete" not in text
    assert all(f"## {section.name}\n" in text for section in SECTIONS)


def test_without_a_gpu_the_cpu_must_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(device, "smi", lambda *fields: None)
    monkeypatch.setattr(device, "module", lambda package: None)
    assert command.main([]) == 2
    assert "--provider cpu" in capsys.readouterr().err


def test_an_unknown_section_is_refused_by_name(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--provider", "cpu", "--only", "parity,nothing"]) == 2
    assert "no such section: nothing" in capsys.readouterr().err


def test_missing_graphs_are_named_with_the_command_that_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["--provider", "cpu", "--models", str(tmp_path)]) == 2
    assert "--prepare" in capsys.readouterr().err


def test_a_machine_without_the_services_packages_can_measure():
    """The sections need NumPy, onnxruntime, orjson, pydantic and prometheus-client."""
    modules = [section.module for section in SECTIONS] + ["benchmarks.gpu.section", "benchmarks.gpu.summary"]
    program = f"""
import importlib, sys
for name in {NOT_ON_A_BARE_MACHINE!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_placement_names_a_node_that_is_elsewhere(models: Path, monkeypatch: pytest.MonkeyPatch):
    nodes = [("a", "LSTM", "CPUExecutionProvider"), ("b", "Range", "OtherExecutionProvider")]
    nodes.append(("node_Shape_0", "Shape", "OtherExecutionProvider"))
    monkeypatch.setattr(placement, "placed", lambda file, stage, graph: nodes)
    figures = Figures()
    placement.measure(Stage("cpu", models, quick=True), figures)
    assert figures.values["graphs"]["fp32"]["elsewhere"] == [
        "b (Range)",
        "node_Shape_0 (Shape, as the manifest allows)",
    ]


def test_what_fails_in_one_graph_leaves_the_others(models: Path, monkeypatch: pytest.MonkeyPatch):
    def placed(_file: object, _stage: Stage, graph: str) -> list[tuple[str, str, str]]:
        if graph == "fp32":
            raise RuntimeError("no kernel")
        return [("a", "LSTM", "CPUExecutionProvider")]

    monkeypatch.setattr(placement, "placed", placed)
    figures = Figures()
    placement.measure(Stage("cpu", models, quick=True), figures)
    assert figures.values["failures"] == {"fp32": "RuntimeError: no kernel"}
    assert figures.values["graphs"].keys() >= {"bundled"}


class OnAGpu(Stage):
    """A stage that says it is on a GPU; what a test asks of it runs on the CPU."""

    refuses = True

    def opened(self, file: object, graph: object, **_: object) -> object:
        """What the service says of a graph."""
        if self.refuses:
            raise ModelError("no kernel for node_LSTM_9 (LSTM)")
        return None


@pytest.mark.parametrize("refuses", [True, False])
def test_a_rejected_node_is_reported(models: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool):
    opsets = []

    def placed(file: bytes, _stage: Stage, _graph: str) -> list[tuple[str, str, str]]:
        opsets.append(onnx.load_from_string(file).opset_import[0].version)
        return [("node_LSTM_9", "LSTM", "CPUExecutionProvider")]

    monkeypatch.setattr(placement, "placed", placed)
    monkeypatch.setattr(OnAGpu, "refuses", refuses)
    text = placement.rejection(OnAGpu("cuda", models))
    if refuses:
        assert text == "rejected: no kernel for node_LSTM_9 (LSTM)"
    else:
        assert text.startswith("NOT rejected at opset 22")
        assert opsets == [22]


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("fp16", 1e-3)])
def test_torch_answers_as_the_graph_does_in_each_precision(models: Path, precision: packed.Precision, most: float):
    here = Stage("cpu", models)
    sequences = here.of_lengths([3, 9, 1, 30])
    logits = packed.Packed(here, precision).logits(sequences)
    expected = parity.answers(here.session(), sequences, 4)
    found = parity.compared([parity.Row(row, None) for row in logits], expected)
    assert 0 < found["logits"] < most


class OnAFakeDevice(Stage):
    """A stage whose batches go through a device's slots, buffers and buckets, and are computed by the CPU."""

    def device(self, graph: stage.Graph = "fp32") -> Device:
        """The fake one."""
        return ONE[0]


@pytest.fixture
def on_a_fake_device(models: Path, tmp_path: Path) -> Stage:
    """One whose models are not proved there yet."""
    shutil.copytree(models, tmp_path / "models")
    return OnAFakeDevice("cpu", tmp_path / "models", quick=True)


@pytest.mark.long
def test_batches_for_a_device_are_made_and_run_as_the_service_does(on_a_fake_device: Stage):
    figures = Figures()
    throughput.measure(on_a_fake_device, figures)
    assert "failures" not in figures.values


def test_a_batch_for_a_device_is_filled_up_and_every_sequence_answered(on_a_fake_device: Stage):
    service = on_a_fake_device.service("fp32", BatchLimits(), Figures())
    assert service.model.buckets is not None
    assert service.queue(ModelMetrics()).buckets is service.model.buckets
    assert service.runners == ONE[0].in_flight
    sequences: list[Steps] = on_a_fake_device.of_lengths([5, 9, 14])
    seen = service.closed(sequences, 0.05, 8)
    assert seen["sequences_per_second"] > 0


def test_a_model_that_the_service_rejects_is_measured_with_a_note(
    on_a_fake_device: Stage, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise VerificationError("its proof does not hold here")

    monkeypatch.setattr(loading.promises, "held", refuse)
    figures = Figures()
    service = on_a_fake_device.service("fp32", BatchLimits(), figures)
    assert service.model.promise is None
    assert service.closed(on_a_fake_device.of_lengths([5, 9]), 0.05, 4)["sequences_per_second"] > 0
    assert figures.values["failures"] == {"fp32, the service rejects it": "its proof does not hold here"}
