"""A device without hardware: batches go through slots, buffers and buckets as on a GPU, and the CPU computes them."""

import ctypes
from dataclasses import replace
from typing import Any

from lengthwise.runtime.provider import Device, Provider


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

    def cudaMalloc(self, address: Any, size: Any, flags: Any = None) -> int:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.held[ctypes.addressof(block)] = block
        return self._answer("cudaMalloc" if flags is None else "cudaHostAlloc")

    cudaHostAlloc = cudaMalloc

    def cudaFreeHost(self, address: Any) -> int:
        del self.held[address.value]
        return 0

    cudaFree = cudaFreeHost

    def cudaMemcpy(self, target: Any, source: Any, size: Any, kind: Any) -> int:
        assert kind.value == 1
        ctypes.memmove(target.value, source.value, size.value)
        return self._answer("cudaMemcpy")

    def _answer(self, name: str) -> int:
        self.calls.append(name)
        return 2 if name == self.failing else 0


FAKE = Provider(
    name="fake",
    execution_provider="CPUExecutionProvider",
    device_type="cpu",
    bits=True,
    wall_clock=True,
    in_flight=2,
    bound=True,
    load_library=lambda name: FakeRuntime(),
    session={"session.record_ep_graph_assignment_info": "1"},
)


def full_runtime(_name: str) -> FakeRuntime:
    """A runtime of a device without memory left, which says so in the words of onnxruntime."""
    runtime = FakeRuntime("cudaHostAlloc")
    runtime.cudaGetErrorString = lambda code: b"Failed to allocate memory for requested buffer"
    return runtime


def spent_runtime(_name: str) -> FakeRuntime:
    """A runtime in a process that has used up its own memory."""
    runtime = FakeRuntime("cudaHostAlloc")
    runtime.cudaGetErrorString = lambda code: b"std::bad_alloc"
    return runtime


SPENT = (Device(replace(FAKE, load_library=spent_runtime), name="Fake", in_flight=2),)
FULL = (Device(replace(FAKE, load_library=full_runtime), name="Full", in_flight=2),)
ONE = (Device(FAKE, name="Fake", in_flight=2),)
TWO = (Device(FAKE, 0, "Fake", in_flight=2), Device(FAKE, 1, "Fake", in_flight=2))

ELSEWHERE = Device(
    Provider(
        name="elsewhere",
        # In every package for the CPU, and without a kernel for anything here: all nodes fall to the CPU.
        execution_provider="AzureExecutionProvider",
        device_type="cpu",
        bits=False,
        wall_clock=True,
        in_flight=1,
        session={"session.record_ep_graph_assignment_info": "1"},
    )
)
