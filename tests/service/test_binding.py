"""A device's memory, and a slot's buffers in it: made once, for any smaller batch, with an ordinary run's bits."""

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from lengthwise.errors import ModelError, NotVerified
from lengthwise.padding import PaddedBatch
from lengthwise.runtime.binding import Slot
from lengthwise.runtime.device_memory import Buffer, CudaMemory
from lengthwise.runtime.graph_inputs import feed
from lengthwise.runtime.manifest import GRAPH_FILE, Manifest
from lengthwise.runtime.provider import PLAIN_CPU
from lengthwise.runtime.session import Session
from tests.support.fake_device import ONE, TWO, FakeRuntime
from tests.support.model_directories import BUNDLED

MANIFEST = Manifest.read(BUNDLED)


class Counting(CudaMemory):
    """Memory that counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(0, lambda name: FakeRuntime())
        self.made: list[int] = []
        self.uploads: list[int] = []

    def on_host(self, size_bytes: int) -> NDArray[np.uint8]:
        self.made.append(size_bytes)
        return super().on_host(size_bytes)

    def on_device(self, size_bytes: int) -> Buffer:
        self.made.append(size_bytes)
        return super().on_device(size_bytes)

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        self.uploads.append(source.nbytes)
        super().upload(source, target)


def batch(rows: int, width: int, seed: int = 0) -> PaddedBatch:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, width + 1, rows).astype(np.int32)
    lengths[0] = width
    steps = random.normal(size=(rows, width, 12)).astype(np.float32)
    return PaddedBatch(steps, lengths)


@pytest.fixture
def plain() -> Any:
    return onnxruntime.InferenceSession(BUNDLED / GRAPH_FILE, providers=["CPUExecutionProvider"])


@pytest.fixture
def memory() -> Counting:
    return Counting()


@pytest.fixture
def slot(plain: Any, memory: Counting) -> Slot:
    return Slot(plain, ONE[0], memory, ["values"])


def run(slot: Slot, given: PaddedBatch, *outputs: str) -> dict[str, NDArray[np.float32]]:
    """The outputs of these names, or all."""
    shapes = {"logits": (given.rows, 9), "attention": (given.rows, given.width)}
    return slot.run(feed(MANIFEST.graph, given), {name: shapes[name] for name in outputs or shapes})


def test_a_bound_run_gives_the_bits_of_an_ordinary_one_whatever_ran_before(plain: Any, slot: Slot):
    for rows, width in ((8, 32), (1, 4), (3, 28), (8, 4), (7, 32)):
        given = batch(rows, width, seed=rows)
        found = run(slot, given)
        logits, attention = plain.run(["logits", "attention"], feed(MANIFEST.graph, given))
        np.testing.assert_array_equal(found["logits"], logits)
        np.testing.assert_array_equal(found["attention"], attention)


def test_buffers_grow_with_batches_and_only_what_a_device_reads_is_copied(slot: Slot, memory: Counting):
    run(slot, batch(1, 4), "logits")
    assert memory.uploads == [1 * 4 * 12 * 4]  # the values, and not the lengths
    run(slot, batch(8, 32))
    assert max(memory.made) == 8 * 32 * 12 * 4
    made = len(memory.made)
    for rows, width in ((8, 32), (1, 4), (3, 28), (2, 32)):
        run(slot, batch(rows, width))
    assert len(memory.made) == made


def test_only_the_outputs_asked_for_come_back_though_the_batch_before_asked_for_more(slot: Slot):
    assert set(run(slot, batch(2, 8))) == {"logits", "attention"}
    # Its attention would have another shape than the one that is still bound.
    (logits,) = run(slot, batch(3, 12), "logits").values()
    kept = logits.copy()
    run(slot, batch(3, 12, seed=2))
    assert kept.shape == (3, 9)
    np.testing.assert_array_equal(logits, kept)  # the next batch does not write over it


def test_an_output_of_another_shape_fails_the_run_and_not_the_slot(slot: Slot):
    with pytest.raises(RuntimeError):
        slot.run(feed(MANIFEST.graph, batch(2, 8)), {"logits": (2, 8)})
    assert run(slot, batch(2, 8), "logits")["logits"].shape == (2, 9)


@pytest.mark.parametrize("devices", [ONE, TWO])
def test_threads_share_the_slots_of_all_devices_and_each_gets_its_own_answer(devices: Any):
    # Of the same kernels: others would round in another order.
    ordinary, bound = (Session.load(BUNDLED, MANIFEST, devices=each) for each in ((PLAIN_CPU,), devices))
    assert bound.bound
    assert not ordinary.bound
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(10):
            given = batch(1 + (seed + turn) % 5, 4 * (1 + turn % 7), seed=seed * 100 + turn)
            if not np.array_equal(bound.run(given).logits, ordinary.run(given).logits):
                wrong.append(seed)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert wrong == []


def test_a_failed_run_gives_its_slot_back():
    session = Session.load(BUNDLED, MANIFEST, devices=ONE)
    broken = PaddedBatch(np.zeros((1, 4, 11), np.float32), np.array([4], np.int32))
    for _ in range(5):  # more than there are slots
        with pytest.raises(Exception, match="values"):
            session.run(broken)
    assert session.run(batch(1, 4)).logits.shape == (1, 9)


def test_the_warm_up_runs_every_shape_and_its_first_one_in_every_slot(monkeypatch: pytest.MonkeyPatch):
    session = Session.load(BUNDLED, MANIFEST, devices=TWO)
    ran: list[tuple[int, tuple[int, ...]]] = []
    run = Slot.run

    def noted(slot: Slot, inputs: Any, outputs: Any) -> Any:
        ran.append((id(slot), inputs["values"].shape[:2]))
        assert set(outputs) == {"logits", "attention"}
        return run(slot, inputs, outputs)

    monkeypatch.setattr(Slot, "run", noted)
    assert session.warm_up([(4, 32), (2, 32), (1, 4)], seconds=60) == 3
    assert len({slot for slot, shape in ran if shape == (4, 32)}) == 4
    assert [shape for _, shape in ran[4:]] == [(2, 32), (2, 32), (1, 4), (1, 4)]  # once on each device
    assert session.warm_up(((1, 4) for _ in range(10_000)), seconds=0) == 1  # it ends in time


def test_host_memory_is_written_and_what_is_uploaded_lies_on_the_device():
    memory = CudaMemory(0, lambda name: FakeRuntime())
    held, there = memory.on_host(24), memory.on_device(100)
    held.view(np.float32)[:] = 1.5
    assert held.shape == (24,)
    memory.upload(held, there)
    assert ctypes.string_at(there.address, held.nbytes) == held.tobytes()
    assert there.size_bytes == 100


def test_every_call_is_for_its_own_gpu_whatever_the_thread_used_before():
    runtime = FakeRuntime()
    memory = CudaMemory(3, lambda name: runtime)
    there = memory.on_device(8)
    for use in (lambda: memory.on_host(8), lambda: memory.on_device(8), lambda: memory.upload(np.zeros(1), there)):
        runtime.device = 0
        use()
        assert runtime.device == 3


def test_memory_is_freed_with_the_last_view_of_it():
    runtime = FakeRuntime()
    memory = CudaMemory(0, lambda name: runtime)
    held, there = memory.on_host(64), memory.on_device(64)
    view = held[:8].view(np.float32)
    del held
    gc.collect()
    assert len(runtime.held) == 2  # the view still reads it
    del view, there
    gc.collect()
    assert runtime.held == {}


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaHostAlloc", "cudaMemcpy", "cudaMalloc"])
def test_a_call_that_fails_is_an_error_with_the_gpu_and_the_reason(call: str):
    memory = CudaMemory(1, lambda name: FakeRuntime(failing=call))
    with pytest.raises(NotVerified, match=rf"GPU 1: {call} failed: in its own words \(error 2\)"):
        memory.upload(memory.on_host(8), memory.on_device(8))


def test_a_device_without_a_runtime_is_an_error():
    with pytest.raises(ModelError, match="libcudart"):
        CudaMemory(0, lambda name: ctypes.CDLL("no such library"))
