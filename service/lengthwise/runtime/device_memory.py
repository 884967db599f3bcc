"""Memory for batches on their way to a device: page-locked on the host, and the device's own.

Page-locked memory is copied by the device itself, at the speed of the bus, while the processor does something else.
onnxruntime's Python interface cannot allocate it, so CUDA's runtime is asked, which onnxruntime has loaded already.
`HostMemory` does the same with ordinary memory: for tests, and for providers that read the host's.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ModelError
from lengthwise.runtime.provider import Device

Bytes = NDArray[np.uint8]

_PORTABLE: Final = 1  # cudaHostAllocPortable: page-locked for every device, not for the current one alone
_TO_DEVICE: Final = 1  # cudaMemcpyHostToDevice

LoadLibrary = Callable[[str], Any]


class Memory(Protocol):
    """Buffers on both sides, and the way from one to the other. A buffer is freed with the last reference to it."""

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer that the device can copy from and to."""

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer of the device."""

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies a contiguous array to the beginning of a device's buffer; returns when it is there."""


class Buffer:
    """A buffer of a device.

    Args:
        address: Where it begins, in the device's addresses.
        size_bytes: How long it is.
        held: What keeps it alive.
    """

    __slots__ = ("__weakref__", "address", "held", "size_bytes")

    def __init__(self, address: int, size_bytes: int, held: object = None) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.held = held


class HostMemory:
    """Ordinary memory on both sides."""

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer of ordinary memory."""
        return np.empty(size_bytes, dtype=np.uint8)

    def on_device(self, size_bytes: int) -> Buffer:
        """Another one."""
        held = self.on_host(size_bytes)
        return Buffer(held.ctypes.data, size_bytes, held)

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies."""
        ctypes.memmove(target.address, source.ctypes.data, source.nbytes)


class CudaMemory:
    """Page-locked memory and a GPU's, by CUDA's runtime.

    Args:
        index: The GPU.
        load: Loads the runtime's library; tests give their own.

    Raises:
        ModelError: The runtime cannot be had.
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
        """Page-locked memory.

        Raises:
            ModelError: There is none to be had.
        """
        address = ctypes.c_void_p()
        self._use()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE))
        held = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
        weakref.finalize(held, self._cuda.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        return np.ctypeslib.as_array(held)

    def on_device(self, size_bytes: int) -> Buffer:
        """The GPU's memory.

        Raises:
            ModelError: There is none to be had.
        """
        address = ctypes.c_void_p()
        self._use()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        buffer = Buffer(address.value or 0, size_bytes)
        weakref.finalize(buffer, self._cuda.cudaFree, ctypes.c_void_p(address.value)).atexit = False
        return buffer

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies over the bus; the interpreter lock is free meanwhile.

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
        """Makes the GPU this thread's: which one is current is the thread's own."""
        self._call("cudaSetDevice", ctypes.c_int(self._index))

    def _call(self, name: str, *given: Any) -> None:
        code = getattr(self._cuda, name)(*given)
        if code:
            said = self._cuda.cudaGetErrorString
            said.restype = ctypes.c_char_p
            text = (said(ctypes.c_int(code)) or b"unknown error").decode(errors="replace")
            raise ModelError(f"GPU {self._index}: {name} failed: {text} (error {code})")


def of(device: Device) -> Memory:
    """The memory that a device's batches go through.

    Raises:
        ModelError: It cannot be had.
    """
    return CudaMemory(device.index) if device.provider.device_type == "cuda" else HostMemory()
