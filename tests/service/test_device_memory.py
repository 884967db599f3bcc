"""Memory is asked of CUDA's runtime for the right GPU, freed with its last use, and no error is lost."""

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import ModelError
from lengthwise.runtime import device_memory
from lengthwise.runtime.device_memory import CudaMemory, HostMemory
from lengthwise.runtime.provider import CPU_DEVICE, PROVIDERS, Device


class FakeRuntime:
    """CUDA's runtime, with the host's memory as both sides."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.device: int | None = None
        self.held: dict[int, Any] = {}
        self.cudaGetErrorString = lambda code: b"in its own words"

    def cudaSetDevice(self, index: Any) -> int:
        self.device = index.value
        return self._answer("cudaSetDevice")

    def cudaHostAlloc(self, address: Any, size: Any, flags: Any) -> int:
        return self._allocated("cudaHostAlloc", address, size)

    def cudaMalloc(self, address: Any, size: Any) -> int:
        return self._allocated("cudaMalloc", address, size)

    def cudaFreeHost(self, address: Any) -> int:
        del self.held[address.value]
        return 0

    cudaFree = cudaFreeHost

    def cudaMemcpy(self, target: Any, source: Any, size: Any, kind: Any) -> int:
        assert kind.value == 1
        ctypes.memmove(target.value, source.value, size.value)
        return self._answer("cudaMemcpy")

    def _allocated(self, name: str, address: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.held[ctypes.addressof(block)] = block
        return self._answer(name)

    def _answer(self, name: str) -> int:
        self.calls.append(name)
        return 2 if name == self.failing else 0


@pytest.mark.parametrize("memory", [HostMemory(), CudaMemory(0, lambda name: FakeRuntime())])
def test_host_memory_is_written_and_what_is_uploaded_lies_on_the_device(memory: HostMemory):
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
    with pytest.raises(ModelError, match=rf"GPU 1: {call} failed: in its own words"):
        memory.upload(memory.on_host(8), memory.on_device(8))


def test_no_runtime_is_an_error():
    def load(name: str) -> Any:
        raise OSError(name)

    with pytest.raises(ModelError, match="libcudart"):
        CudaMemory(0, load)


def test_a_device_has_the_memory_of_its_provider(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeRuntime())
    monkeypatch.setattr(CudaMemory.__init__, "__defaults__", (ctypes.CDLL,))
    assert isinstance(device_memory.of(CPU_DEVICE), HostMemory)
    assert isinstance(device_memory.of(Device(PROVIDERS["cuda"])), CudaMemory)
