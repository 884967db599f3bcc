"""Buffers for batches that run on a device: page-locked memory of the host, and memory of the device.

The device itself copies page-locked memory, at the speed of the bus, while the processor does other work. onnxruntime's
Python interface cannot allocate it, so CUDA's runtime is called, which onnxruntime has loaded already. No provider of
today uses ordinary memory on both sides (`HostMemory`); with it the tests run the whole device path (buffers, slots,
buckets) on machines without a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ModelError
from lengthwise.runtime.installation import LoadLibrary
from lengthwise.runtime.provider import Device

Bytes = NDArray[np.uint8]

_PORTABLE: Final = 1  # cudaHostAllocPortable: page-locked for every device, not only for the current one
_TO_DEVICE: Final = 1  # cudaMemcpyHostToDevice


class Buffer:
    """A buffer in a device's memory, at an address of the device.

    `owner` is an object that frees the memory when it is gone; None where a finalizer of the buffer does.
    """

    __slots__ = ("__weakref__", "address", "owner", "size_bytes")

    def __init__(self, address: int, size_bytes: int, owner: object = None) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.owner = owner


class HostMemory:
    """Ordinary memory, for the host and for the device. A buffer is freed with its last reference."""

    def on_host(self, size_bytes: int) -> Bytes:
        """A buffer that the device can copy from and to."""
        return np.empty(size_bytes, dtype=np.uint8)

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer in the device's memory."""
        array = self.on_host(size_bytes)
        return Buffer(array.ctypes.data, size_bytes, array)

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies a contiguous array of any shape to the start of a device buffer; returns when the copy is complete."""
        ctypes.memmove(target.address, source.ctypes.data, source.nbytes)


class CudaMemory(HostMemory):
    """Page-locked memory and memory of a GPU, through CUDA's runtime; a ModelError where the runtime fails.

    Args:
        index: The GPU's number.
        load: Loads the runtime's library; tests pass their own.
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
        """A buffer of page-locked memory."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE))
        memory = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
        weakref.finalize(memory, self._cuda.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        return np.ctypeslib.as_array(memory)

    def on_device(self, size_bytes: int) -> Buffer:
        """A buffer of the GPU's memory."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        buffer = Buffer(address.value or 0, size_bytes)
        weakref.finalize(buffer, self._cuda.cudaFree, ctypes.c_void_p(address.value)).atexit = False
        return buffer

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies an array of any shape over the bus; releases the interpreter lock."""
        to, start, size = ctypes.c_void_p(target.address), ctypes.c_void_p(source.ctypes.data), source.nbytes
        self._call("cudaMemcpy", to, start, ctypes.c_size_t(size), ctypes.c_int(_TO_DEVICE))

    def _call(self, name: str, *arguments: Any) -> None:
        """Calls CUDA, after making the GPU the current one of this thread, which CUDA requires before each call.

        Raises:
            ModelError: CUDA returns an error; the message has its text.
        """
        calls = (("cudaSetDevice", (ctypes.c_int(self._index),)), (name, arguments))
        for called, parameters in calls:
            if code := getattr(self._cuda, called)(*parameters):
                describe = self._cuda.cudaGetErrorString
                describe.restype = ctypes.c_char_p
                text = (describe(ctypes.c_int(code)) or b"unknown error").decode(errors="replace")
                raise ModelError(f"GPU {self._index}: {called} failed: {text} (error {code})")


def of(device: Device) -> HostMemory:
    """The memory for a device's batches; a ModelError if it is a GPU, and CUDA's runtime cannot be loaded."""
    return CudaMemory(device.index) if device.provider.device_type == "cuda" else HostMemory()
