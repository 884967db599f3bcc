"""The promises on a real GPU: every node there, float32 in full, neighbours within the tolerance, memory that stays."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lengthwise.batching.plan import BatchLimits
from lengthwise.errors import ModelError
from lengthwise.padding import PaddedBatch, pad
from lengthwise.repository import loading
from lengthwise.repository.loading import LoadedModel
from lengthwise.runtime.manifest import Manifest
from lengthwise.runtime.provider import DeviceChoice, choose
from lengthwise.runtime.session import Session
from tests.gallery.onnx_models import integers
from tests.gallery.onnx_models import model as onnx_model
from tests.gpu.company import hold_to_its_promise, sequences
from tests.support.model_directories import BUNDLED, place
from tests.support.server_process import started

LIMITS = BatchLimits(64, 16_384)
ROUNDING = 1e-4
"""What float32 may round by in another order of its sums; TF32, switched on by itself, would be past it."""


@pytest.fixture(scope="module")
def served(choice: DeviceChoice, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The bundled model as the service loads it on all GPUs: proved there, measured, warmed up."""
    directory = place(tmp_path_factory.mktemp("models"))
    return loading.load(directory, LIMITS, devices=choice.devices)


def test_every_node_of_the_bundled_model_but_its_shapes_is_on_the_gpu(on_gpu: Session, choice: DeviceChoice) -> None:
    assert on_gpu.provider == choice.devices[0].label  # a node elsewhere would have refused the load


def test_a_graph_with_a_node_that_cuda_has_no_kernel_for_is_refused_by_its_name(
    manifest: Manifest, choice: DeviceChoice
) -> None:
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
        Session(graph.SerializeToString(), manifest, devices=choice.devices[:1])


def test_answers_in_float32_are_those_of_the_cpu_but_for_rounding(on_gpu: Session, on_cpu: Session) -> None:
    batch = pad(sequences(32))
    found, expected = on_gpu.run(batch, ("logits", "attention")), on_cpu.run(batch, ("logits", "attention"))
    assert np.abs(found.logits - expected.logits).max() < ROUNDING * max(1.0, float(np.abs(expected.logits).max()))
    assert found.attention is not None
    assert expected.attention is not None
    assert np.abs(found.attention - expected.attention).max() < ROUNDING
    past = np.arange(batch.width) >= batch.lengths[:, None]
    assert not found.attention[past].any()


def test_tf32_is_off_unless_it_is_asked_for(manifest: Manifest, choice: DeviceChoice, on_cpu: Session) -> None:
    batch = pad(sequences(32))
    expected = on_cpu.run(batch).logits

    def off_by(tf32: bool) -> float:
        session = Session.load(BUNDLED, manifest, devices=[replace(choice.devices[0], tf32=tf32)])
        return float(np.abs(session.run(batch).logits - expected).max())

    assert off_by(tf32=False) < ROUNDING
    assert off_by(tf32=False) <= off_by(tf32=True)


def test_a_neighbour_moves_no_answer_by_more_than_is_promised_there(served: LoadedModel) -> None:
    hold_to_its_promise(served)


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
        width = served.buckets.width_of(int(random.integers(1, 1025)))
        rows = served.buckets.rows_of(int(random.integers(1, max(2, LIMITS.padded_steps // width))), width)
        served.session.run(pad([np.zeros((width, 12), np.float32)] * min(rows, LIMITS.rows), width=width))
    assert before - free_bytes(choice.devices[0].index) < 64 << 20


def test_an_arena_keeps_to_its_limit(manifest: Manifest, choice: DeviceChoice) -> None:
    bounded = replace(choice.devices[0], memory_limit_bytes=64 << 20)
    session = Session.load(BUNDLED, manifest, devices=[bounded])
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


def test_every_gpu_answers_alike(manifest: Manifest, choice: DeviceChoice) -> None:
    if len(choice.devices) < 2:
        pytest.skip("there is one GPU")
    batch = pad(sequences(16, seed=4))
    answers = [Session.load(BUNDLED, manifest, devices=[device]).run(batch).logits for device in choice.devices]
    for found in answers[1:]:
        np.testing.assert_array_equal(found, answers[0])


def test_a_service_takes_the_gpu_by_itself_and_says_so(choice: DeviceChoice, tmp_path: Path) -> None:
    place(tmp_path)
    few = ("--max-batch-rows", "8", "--max-batch-cost-steps", "512")  # soon warmed up
    with started(str(tmp_path), *few) as server:
        found: Any = httpx.get(f"{server.url}/healthz", trust_env=False).json()
        answer = httpx.post(f"{server.url}/predict", json={"sequences": [[[0.0] * 12] * 9]}, trust_env=False)
    assert found["provider"]["name"] == "cuda"
    assert found["models"][0]["provider"] == choice.devices[0].label
    assert found["models"][0]["promise"]["provider"] == choice.devices[0].label
    assert answer.status_code == 200


def test_all_that_cuda_needs_is_here(choice: DeviceChoice) -> None:
    assert choose("cuda").devices == choice.devices
