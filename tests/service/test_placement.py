"""No node of a graph runs on the CPU unseen: only what computes shapes may, and what else does is named."""

import time
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest

from lengthwise.errors import ModelError
from lengthwise.runtime import placement
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.placement import PlacedNode
from lengthwise.runtime.provider import PROVIDERS, Device
from lengthwise.runtime.session import Session
from lengthwise_export.onnx_graphs import precision
from tests.support.fake_device import ELSEWHERE
from tests.support.model_directories import BUNDLED

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
GPU = Device(PROVIDERS["cuda"], name="NVIDIA H200")


def on(provider: str, *names: str) -> list[PlacedNode]:
    return [PlacedNode(name, name.partition("_")[0].title(), provider) for name in names]


@pytest.mark.parametrize(
    "placed", [on(CUDA, "lstm_1", "gemm_2"), [*on(CUDA, "shape_1", "lstm_3"), *on(CPU, "squeeze_2")]]
)
def test_nodes_on_the_device_and_listed_ones_on_the_cpu_are_taken(placed: list[PlacedNode]):
    placement.check(placed, CUDA, ("squeeze_2", ""), model="m/1")


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        ([*on(CUDA, "gemm_1"), *on(CPU, "squeeze_2", "lstm_3")], r"m/1.*CUDAExecutionProvider.*for lstm_3 \(Lstm\)"),
        (on("DmlExecutionProvider", "squeeze_2"), "squeeze_2"),
        ([PlacedNode("", "LSTM", CPU)], r"a node without a name \(LSTM\)"),
        (on(CPU, *(f"a_{i}" for i in range(8))), r"a_4 \(A\), and 3 more"),
        ([], "does not say"),
    ],
    ids=["not listed", "another provider", "no name", "many", "nothing recorded"],
)
def test_other_nodes_that_are_not_on_the_device_are_refused_by_name(placed: list[PlacedNode], said: str):
    with pytest.raises(ModelError, match=said):
        placement.check(placed, CUDA, ("squeeze_2", ""), model="m/1")


def test_a_graph_with_nodes_that_fall_to_the_cpu_is_refused_by_their_names():
    with pytest.raises(ModelError, match=r"AzureExecutionProvider.*node_\w+ \(\w+\)"):
        Session.load(BUNDLED, Manifest.read(BUNDLED), devices=[ELSEWHERE])


class Reporting(onnxruntime.InferenceSession):  # type: ignore[misc]
    """onnxruntime's session, which reports what a test says."""

    opened: Any = None
    starts = True
    on_cpu: tuple[str, ...] = ()

    def __init__(self, source: Any, options: Any, providers: Any, **others: Any) -> None:
        Reporting.opened = SimpleNamespace(options=options, providers=providers, **others)
        super().__init__(source, options, providers=[CPU])

    def get_providers(self) -> list[str]:
        return [CUDA, CPU] if self.starts else [CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [node for part in super().get_provider_graph_assignment_info() for node in part.get_nodes()]
        named = [(node, CPU if node.name in self.on_cpu else CUDA) for node in nodes]
        return [SimpleNamespace(ep_name=name, get_nodes=lambda node=node: [node]) for node, name in named]


@pytest.fixture
def reporting(monkeypatch: pytest.MonkeyPatch) -> type[Reporting]:
    monkeypatch.setattr("lengthwise.runtime.opening.onnxruntime.InferenceSession", Reporting)
    monkeypatch.setattr("lengthwise.runtime.device_memory.CudaMemory", lambda index, load: None)
    monkeypatch.setattr(Reporting, "starts", True)
    monkeypatch.setattr(Reporting, "on_cpu", ())
    return Reporting


def load(**fields: Any) -> Session:
    manifest = Manifest.read(BUNDLED).model_copy(update=fields)
    return Session((BUNDLED / GRAPH_FILE).read_bytes(), manifest, devices=[GPU])


def test_a_session_on_cuda_is_opened_without_fallback_and_with_its_options(reporting: type[Reporting]):
    session = load()
    assert reporting.opened.enable_fallback == 0
    assert reporting.opened.providers == [(CUDA, GPU.options)]
    assert reporting.opened.options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert not reporting.opened.options.enable_mem_pattern
    assert session.provider == "CUDAExecutionProvider, NVIDIA H200"
    assert session.clock is time.perf_counter


def test_a_device_is_opened_without_warnings_and_the_cpus_log_is_kept(
    reporting: type[Reporting], monkeypatch: pytest.MonkeyPatch
):
    severities: list[int] = []
    monkeypatch.setattr("lengthwise.runtime.opening.onnxruntime.set_default_logger_severity", severities.append)
    Session.load(BUNDLED, Manifest.read(BUNDLED))
    assert severities == []
    load()
    assert severities == [3]  # errors are printed
    assert reporting.opened.options.log_severity_level == 3


def test_weights_at_int8_that_a_device_makes_float32_are_told(
    reporting: type[Reporting], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    load()
    assert "int8 weights" not in caplog.text
    graph = precision.convert(onnx.load(BUNDLED / GRAPH_FILE), "int8")
    session = Session(graph.SerializeToString(), Manifest.read(BUNDLED), devices=[GPU])
    assert session.kernels == "onnxruntime"
    assert "its int8 weights become float32 in every run" in caplog.text


def test_only_a_listed_node_that_computes_a_shape_may_fall_to_the_cpu(
    reporting: type[Reporting], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reporting, "on_cpu", ("node_sym_size_int_6",))
    load(host_nodes=("node_sym_size_int_6",))
    with pytest.raises(ModelError):
        load(host_nodes=())
    monkeypatch.setattr(reporting, "on_cpu", ("node_LSTM_9",))
    with pytest.raises(ModelError):
        load()
    # And onnxruntime's session may be on the CPU as a whole
    monkeypatch.setattr(reporting, "starts", False)
    with pytest.raises(ModelError, match="could not start"):
        load()
