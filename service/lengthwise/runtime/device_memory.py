"""Buffers for batches that run on a device: page-locked memory of the host, and memory of the device.

The device itself copies page-locked memory, at the speed of the bus, while the processor does other work. onnxruntime's
Python interface cannot allocate it, so CUDA's runtime is called, which onnxruntime has loaded already. Tests pass a
runtime that has the host's memory on both sides, and so run the whole device path (buffers, slots, buckets).
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import ModelError, NotVerified
from lengthwise.runtime.installation import LoadLibrary

Bytes = NDArray[np.uint8]

_PORTABLE: Final = 1  # cudaHostAllocPortable: page-locked for every device, not only for the current one
_TO_DEVICE: Final = 1  # cudaMemcpyHostToDevice


@dataclass(slots=True, weakref_slot=True, eq=False)
class Buffer:
    """A buffer in a device's memory."""

    address: int  # of the device
    size_bytes: int


class CudaMemory:
    """Allocates page-locked memory of the host, and memory of a GPU, through CUDA's runtime.

    A buffer is freed with its last reference.

    Args:
        index: The GPU's number.
        load: Loads the runtime's library by its name.

    Raises:
        ModelError: The runtime cannot be loaded. Every method raises a ModelError, too, if CUDA returns an error.
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
        """Allocates a buffer of page-locked memory of the host; returns it as an array `[size_bytes]` of bytes."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE))
        memory = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
        weakref.finalize(memory, self._cuda.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        return np.ctypeslib.as_array(memory)

    def on_device(self, size_bytes: int) -> Buffer:
        """Allocates a buffer of the GPU's memory."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        buffer = Buffer(address.value or 0, size_bytes)
        weakref.finalize(buffer, self._cuda.cudaFree, ctypes.c_void_p(address.value)).atexit = False
        return buffer

    def upload(self, source: NDArray[Any], target: Buffer) -> None:
        """Copies a contiguous array of any shape to the start of a buffer, without the interpreter lock."""
        to_address, from_address = ctypes.c_void_p(target.address), ctypes.c_void_p(source.ctypes.data)
        self._call("cudaMemcpy", to_address, from_address, ctypes.c_size_t(source.nbytes), ctypes.c_int(_TO_DEVICE))

    def _call(self, name: str, *arguments: Any) -> None:
        """Calls a function of CUDA's runtime, after `cudaSetDevice`: each thread must choose its GPU before a call.

        Raises:
            ModelError: CUDA returns an error; the message has its text. Without memory left it is a NotVerified.
        """  # noqa: DOC502 - an expression chooses the class, which the rule cannot read
        calls = (("cudaSetDevice", (ctypes.c_int(self._index),)), (name, arguments))
        for function, parameters in calls:
            if code := getattr(self._cuda, function)(*parameters):
                describe = self._cuda.cudaGetErrorString
                describe.restype = ctypes.c_char_p
                text = (describe(ctypes.c_int(code)) or b"unknown error").decode(errors="replace")
                raise (NotVerified if code == 2 else ModelError)(  # cudaErrorMemoryAllocation
                    f"GPU {self._index}: {function} failed: {text} (error {code})"
                )
