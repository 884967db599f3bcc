"""On a real GPU, in float32 and at fp16: every node there, the promised tolerance, no padding, no more memory."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx
import onnxruntime
import pytest

from lengthwise.batching.limits import BatchLimits
from lengthwise.errors import ConfigurationError, ModelError
from lengthwise.padding import PaddedBatch, Steps, pad
from lengthwise.repository import loading
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.provider import DeviceChoice, choose
from lengthwise.runtime.session import Session
from lengthwise.verification import promises
from lengthwise_export.exporting.model_files import host_nodes
from lengthwise_export.onnx_graphs import precision
from tests.gallery.onnx_models import integers
from tests.gallery.onnx_models import model as onnx_model
from tests.support.model_directories import BUNDLED, place, sign
from tests.support.server_process import started

MANIFEST = Manifest.read(BUNDLED)
LIMITS = BatchLimits(64, 16_384)
ROUNDING = 1e-4
"""What float32 may round by in another order of its sums; TF32, switched on by itself, would be past it."""


def sequences(count: int, seed: int = 0, longest: int = 300) -> list[Steps]:
    """Sequences of the bundled model's features, of all lengths up to the longest."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(n, 12)).astype(np.float32) for n in random.integers(1, longest + 1, count)]


def half(folder: Path) -> Path:
    """The bundled model at fp16; its golden sequences hold what float32 answers."""
    directory = place(folder)
    graph = precision.convert(onnx.load(directory / GRAPH_FILE), "fp16")
    (directory / GRAPH_FILE).write_bytes(graph.SerializeToString())
    sign(directory, precision="fp16", from_fp32=1e-2, host_nodes=host_nodes(graph, "lengths"))
    return directory


@pytest.fixture(scope="module")
def choice() -> DeviceChoice:
    """The GPUs; a test that asks for them is skipped where there is none, and the end of the run says so."""
    try:
        found = choose("auto")
    except ConfigurationError as error:
        pytest.skip(str(error))
    if not found.provider.bound:
        pytest.skip(found.reason)
    return found


@pytest.fixture(scope="module")
def on_cpu() -> Session:
    """The bundled model on the CPU."""
    return Session.load(BUNDLED, MANIFEST)


@pytest.fixture(scope="module")
def on_gpu(choice: DeviceChoice) -> Session:
    """The same on one GPU."""
    return Session.load(BUNDLED, MANIFEST, devices=choice.devices[:1])


@pytest.fixture(scope="module")
def served(choice: DeviceChoice, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The bundled model as the service loads it on all GPUs: proved there, measured, warmed up."""
    return loading.load(place(tmp_path_factory.mktemp("models")), LIMITS, devices=choice.devices)


@pytest.fixture(scope="module")
def served_at_fp16(choice: DeviceChoice, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The same at fp16: every node is on the GPU, or the load would be refused."""
    return loading.load(half(tmp_path_factory.mktemp("models")), LIMITS, devices=choice.devices)


def test_a_graph_with_a_node_that_cuda_has_no_kernel_for_is_refused_by_its_name(choice: DeviceChoice) -> None:
    graph = onnx_model(
        "g (float[rows, width, 12] values, int32[rows] lengths) => (float[rows, 9] logits)",
        """[only_the_cpu_has_it] other = Unique (values)
        [sum] sum = ReduceSum <keepdims = 0> (other)
        [cast] sizes = Cast <to = 1> (lengths)
        [add] row = Add (sizes, sum)
        [column] column = Unsqueeze (row, last)
        [expand] logits = Expand (column, shape)""",
        {"last": integers(1), "shape": integers(1, 9)},
        producer="test",
        opset=18,
    )
    with pytest.raises(ModelError, match=r"CUDAExecutionProvider has no kernel for .*only_the_cpu_has_it \(Unique\)"):
        Session(graph.SerializeToString(), MANIFEST, devices=choice.devices[:1])


def test_answers_in_float32_are_those_of_the_cpu_but_for_rounding(on_gpu: Session, on_cpu: Session) -> None:
    batch = pad(sequences(32))
    found, expected = on_gpu.run(batch, ("logits", "attention")), on_cpu.run(batch, ("logits", "attention"))
    assert np.abs(found.logits - expected.logits).max() < ROUNDING * max(1.0, float(np.abs(expected.logits).max()))
    assert found.attention is not None
    assert expected.attention is not None
    assert np.abs(found.attention - expected.attention).max() < ROUNDING
    past = np.arange(batch.width) >= batch.lengths[:, None]
    assert not found.attention[past].any()


def test_tf32_is_off_unless_it_is_asked_for(choice: DeviceChoice, on_cpu: Session) -> None:
    batch = pad(sequences(32))
    expected = on_cpu.run(batch).logits

    def off_by(tf32: bool) -> float:
        session = Session.load(BUNDLED, MANIFEST, devices=[replace(choice.devices[0], tf32=tf32)])
        return float(np.abs(session.run(batch).logits - expected).max())

    assert off_by(tf32=False) < ROUNDING
    assert off_by(tf32=False) <= off_by(tf32=True)


@pytest.mark.parametrize("kind", ["served", "served_at_fp16"])
def test_a_neighbour_moves_no_answer_by_more_than_is_promised_there(kind: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(kind)
    assert model.promise is not None
    assert model.promise.provider == model.session.provider
    members = sequences(24, seed=1)
    together = model.session.run(pad(members)).logits
    for steps, in_company in zip(members, together, strict=True):
        alone = model.session.run(pad([steps])).logits[0]
        assert np.abs(alone - in_company).max() <= model.promise.tolerance


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_lies_in_the_padding_never_reaches_an_answer(on_gpu: Session, junk: float) -> None:
    clean = pad(sequences(16, seed=2))
    dirty = clean.steps.copy()
    dirty[np.arange(clean.width) >= clean.lengths[:, None]] = junk
    np.testing.assert_array_equal(on_gpu.run(PaddedBatch(dirty, clean.lengths)).logits, on_gpu.run(clean).logits)


def free_bytes(index: int) -> int:
    """What is free of a GPU's memory, by CUDA's runtime."""
    runtime = ctypes.CDLL("libcudart.so.13")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert runtime.cudaSetDevice(index) == 0
    assert runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


def test_memory_stays_where_the_warm_up_left_it(served: LoadedModel, choice: DeviceChoice) -> None:
    assert served.buckets is not None
    random = np.random.default_rng(3)
    before = free_bytes(choice.devices[0].index)
    for _ in range(1000):
        width = served.buckets.padded_width(int(random.integers(1, 1025)))
        rows = served.buckets.rows_of(int(random.integers(1, max(2, LIMITS.padded_steps // width))), width)
        served.session.run(pad([np.zeros((width, 12), np.float32)] * min(rows, LIMITS.rows), width=width))
    assert before - free_bytes(choice.devices[0].index) < 64 << 20


def test_an_arena_keeps_to_its_limit(choice: DeviceChoice) -> None:
    bounded = replace(choice.devices[0], memory_limit_bytes=64 << 20)
    session = Session.load(BUNDLED, MANIFEST, devices=[bounded])
    assert session.run(pad(sequences(4, longest=50))).logits.shape == (4, 9)
    with pytest.raises(Exception, match=r"(?i)memory|alloc"):
        session.run(pad([np.zeros((4096, 12), np.float32)] * 64))  # its recurrent layers answer with 134 MB each


def test_batches_in_flight_at_once_get_their_own_answers(served: LoadedModel, on_cpu: Session) -> None:
    wrong: list[float] = []

    def ask(seed: int) -> None:
        for turn in range(20):
            batch = pad(sequences(1 + seed, seed=100 * seed + turn, longest=60))
            expected = on_cpu.run(batch).logits
            off = float(np.abs(served.session.run(batch).logits - expected).max())
            if off > ROUNDING * max(1.0, float(np.abs(expected).max())):
                wrong.append(off)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert wrong == []


def test_every_gpu_answers_alike(choice: DeviceChoice) -> None:
    if len(choice.devices) < 2:
        pytest.skip("there is one GPU")
    batch = pad(sequences(16, seed=4))
    answers = [Session.load(BUNDLED, MANIFEST, devices=[device]).run(batch).logits for device in choice.devices]
    for found in answers[1:]:
        np.testing.assert_array_equal(found, answers[0])


@pytest.mark.process
def test_a_service_takes_the_gpu_by_itself_and_says_so(choice: DeviceChoice, tmp_path: Path) -> None:
    place(tmp_path)
    few = ("--max-batch-rows", "8", "--max-batch-cost-steps", "512")  # soon warmed up
    with started(str(tmp_path), *few) as server:
        found: Any = httpx2.get(f"{server.url}/healthz", trust_env=False).json()
        answer = httpx2.post(f"{server.url}/predict", json={"sequences": [[[0.0] * 12] * 9]}, trust_env=False)
    model = found["models"][0]
    assert (found["provider"]["name"], answer.status_code) == ("cuda", 200)
    assert model["provider"] == model["promise"]["provider"] == choice.devices[0].label


def test_all_that_cuda_needs_is_here(on_gpu: Session, choice: DeviceChoice) -> None:
    assert choose("cuda").devices == choice.devices
    assert on_gpu.provider == choice.devices[0].label  # a node but its shapes elsewhere would have refused the load


# fp16 and int8


def test_answers_at_fp16_are_as_near_to_those_of_the_cpu_as_the_load_allows(
    served_at_fp16: LoadedModel, on_cpu: Session
) -> None:
    batch = pad(sequences(32))
    found, expected = served_at_fp16.session.run(batch).logits, on_cpu.run(batch).logits
    size = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
    assert (np.abs(found - expected) / size).max() < promises.MAX_DIFFERENCE["fp16"]
    assert found.tobytes() != expected.tobytes()


def test_at_fp16_attention_at_padding_is_exactly_nothing(served_at_fp16: LoadedModel) -> None:
    batch = pad(sequences(16, seed=2))
    attention = served_at_fp16.session.run(batch, ("logits", "attention")).attention
    assert attention is not None
    assert not attention[np.arange(batch.width) >= batch.lengths[:, None]].any()


def test_the_promise_of_a_gpu_is_kept_for_the_next_start(choice: DeviceChoice, tmp_path: Path) -> None:
    directory = half(tmp_path)
    first = loading.load(directory, BatchLimits(4, 256), devices=choice.devices)
    assert (directory / promises.FILE).is_file()
    assert loading.load(directory, BatchLimits(4, 256), devices=choice.devices).promise == first.promise


def test_a_layer_that_the_gpu_cannot_run_is_refused_by_its_name(choice: DeviceChoice) -> None:
    graph = onnx.load(BUNDLED / GRAPH_FILE)
    for node in graph.graph.node:
        if node.op_type == "LSTM":
            node.attribute.append(onnx.helper.make_attribute("clip", 1e6))  # of cuDNN's layers none has it
    listed = MANIFEST.model_copy(update={"host_nodes": host_nodes(graph, "lengths")})
    with pytest.raises(ModelError, match=r"CUDAExecutionProvider has no kernel for .*\(LSTM\)"):
        Session(graph.SerializeToString(), listed, devices=choice.devices[:1])


def test_an_int8_model_runs_there_with_its_weights_in_float32(choice: DeviceChoice) -> None:
    content = precision.convert(onnx.load(BUNDLED / GRAPH_FILE), "int8")
    listed = precision.manifest_at(MANIFEST, "int8").model_copy(update={"host_nodes": host_nodes(content, "lengths")})
    graph = content.SerializeToString()
    batch = pad(sequences(16, seed=3))
    options = onnxruntime.SessionOptions()
    # Further optimisations would put layers in their place that round the inputs to int8, too; CUDA has none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    on_cpu = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {listed.graph.sequences: batch.steps, listed.graph.lengths: batch.lengths}
    (expected,) = on_cpu.run([listed.graph.logits], feed)
    found = Session(graph, listed, devices=choice.devices[:1]).run(batch).logits
    assert np.abs(found - expected).max() < ROUNDING * np.abs(expected).max()


def test_opening_a_session_prints_nothing(choice: DeviceChoice, capfd: pytest.CaptureFixture[str]) -> None:
    Session.load(BUNDLED, MANIFEST, devices=choice.devices[:1])
    assert capfd.readouterr().err == ""
