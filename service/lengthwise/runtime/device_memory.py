"""Buffers for batches that run on a device: page-locked memory of the host, and memory of the device.

The device itself copies page-locked memory, at the speed of the bus, while the processor does other work. onnxruntime's
Python interface cannot allocate it, so CUDA's runtime is called, which onnxruntime has loaded already. `HostMemory` is
ordinary memory on both sides. No provider of today uses it; with it the tests run the whole device path (buffers,
slots, buckets) on machines without a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ModelError
from lengthwise.runtime.installation import LoadLibrary
from lengthwise.runtime.provider import Device

Bytes = NDArray[np.uint8]

_PORTABLE: Final = 1  # cudaHostAllocPortable: page-locked for every device, not only for the current one
_TO_DEVICE: Final = 1  # cudaMemcpyHostToDevice


class Memory(Protocol):
    """Allocates buffers on host and device, and copies between them; a buffer is freed with its last reference."""

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer that the device can copy from and to."""

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer in the device's memory."""

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies a contiguous array to the start of a device buffer; returns when the copy is complete."""


class Buffer:
    """A buffer in a device's memory.

    Args:
        address: Its start, as an address of the device.
        size_bytes: Its size.
        held: The object that owns the memory.
    """

    __slots__ = ("__weakref__", "address", "held", "size_bytes")

    def __init__(self, address: int, size_bytes: int, held: object = None) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.held = held


class HostMemory:
    """Ordinary memory in the place of both the host's and the device's."""

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer of ordinary memory."""
        return np.empty(size_bytes, dtype=np.uint8)

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer of ordinary memory, used as the device's."""
        held = self.on_host(size_bytes)
        return Buffer(held.ctypes.data, size_bytes, held)

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies the bytes."""
        ctypes.memmove(target.address, source.ctypes.data, source.nbytes)


class CudaMemory:
    """Page-locked memory, and the memory of a GPU, through CUDA's runtime.

    Args:
        index: The GPU's number.
        load: Loads the runtime's library; tests pass their own.

    Raises:
        ModelError: The runtime cannot be loaded.
    """

    def __init__(self, index: int, load: LoadLibrary = ctypes.CDLL) -> None:
        self._index = index
        for name in ("libcudart.so.13", "libcudart.so.12"):
            try:
                self._cuda = load(name)
            except OSError:
                continue
            return
        raise ModelError("CUDA's runtime (libcudart.so) cannot be loaded")

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer of page-locked memory.

        Raises:
            ModelError: The allocation failed.
        """
        address = ctypes.c_void_p()
        self._use()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE))
        held = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
        weakref.finalize(held, self._cuda.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        return np.ctypeslib.as_array(held)

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer of the GPU's memory.

        Raises:
            ModelError: The allocation failed.
        """
        address = ctypes.c_void_p()
        self._use()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        buffer = Buffer(address.value or 0, size_bytes)
        weakref.finalize(buffer, self._cuda.cudaFree, ctypes.c_void_p(address.value)).atexit = False
        return buffer

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies over the bus; releases the interpreter lock.

        Raises:
            ModelError: The copy failed.
        """
        self._use()
        self._call(
            "cudaMemcpy",
            ctypes.c_void_p(target.address),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_size_t(source.nbytes),
            ctypes.c_int(_TO_DEVICE),
        )

    def _use(self) -> None:
        """Makes the GPU the current one of this thread, as CUDA requires before each call."""
        self._call("cudaSetDevice", ctypes.c_int(self._index))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            describe = self._cuda.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            text = (describe(ctypes.c_int(code)) or b"unknown error").decode(errors="replace")
            raise ModelError(f"GPU {self._index}: {name} failed: {text} (error {code})")


def of(device: Device) -> Memory:
    """The kind of memory for a device's batches.

    Raises:
        ModelError: CUDA's runtime cannot be loaded.
    """
    return CudaMemory(device.index) if device.provider.device_type == "cuda" else HostMemory()
