"""One batch in flight on a device: reusable buffers, and a run that is bound to them (onnxruntime's I/O binding).

```
array ─> page-locked buffer ─> device buffer ───────┐                       (inputs that the device reads)
array ─> page-locked buffer ────────────────────────┴> run ─> page-locked buffer ─> array
```

A batch allocates nothing if its shape is not larger than the earlier ones. Lengths stay on the host, where
onnxruntime's recurrent kernels read them. Only the requested outputs are copied back. One thread at a time uses a slot;
`lengthwise.runtime.session` assigns it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.device_memory import Buffer, Bytes, CudaMemory
from lengthwise.runtime.provider import Device

Shape = tuple[int, ...]


class Slot:
    """The buffers and the I/O binding of one batch in flight.

    Every input and output has a page-locked *host buffer*. An input that the graph reads in the device's memory
    (`on_device` has their names) also has a *device buffer*.
    """

    def __init__(self, session: Any, device: Device, memory: CudaMemory, on_device: Collection[str]) -> None:
        self._session = session
        self._device = device
        self._memory = memory
        self._on_device = frozenset(on_device)
        self._binding = session.io_binding()
        self._host_buffers: dict[str, Bytes] = {}  # by the name of an input or output
        self._device_buffers: dict[str, Buffer] = {}  # by the name of an input

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, Shape]) -> dict[str, NDArray[np.float32]]:
        """Runs the graph once, and returns copies of the requested outputs by name.

        Args:
            inputs: The arrays of all inputs, by the graph's names.
            outputs: The shapes of the requested outputs, by the graph's names.
        """
        # 1. Copy the inputs, and bind them where the graph reads them.
        binding = self._binding
        for name, array in inputs.items():
            staged = self._staged(name, array.shape, array.dtype)
            np.copyto(staged, array)
            if name in self._on_device:
                target = self._device_buffers.get(name)
                if target is None or target.size_bytes < staged.nbytes:
                    target = self._device_buffers[name] = self._memory.on_device(staged.nbytes)
                self._memory.upload(staged, target)
                device, index, address = self._device.provider.device_type, self._device.index, target.address
            else:
                device, index, address = "cpu", 0, staged.ctypes.data
            binding.bind_input(name, device, index, array.dtype.type, array.shape, address)
        # 2. Bind the host buffers of the outputs, and run.
        binding.clear_binding_outputs()  # the last batch may have requested others
        results = {}
        for name, shape in outputs.items():
            results[name] = self._staged(name, shape, np.dtype(np.float32))
            binding.bind_output(name, "cpu", 0, np.float32, shape, results[name].ctypes.data)
        self._session.run_with_iobinding(binding)
        return {name: staged.copy() for name, staged in results.items()}

    def _staged(self, name: str, shape: Shape, kind: np.dtype[Any]) -> NDArray[Any]:
        """Returns the start of the host buffer of an input or output as an array of this shape and type of numbers.

        If the buffer is too small, a larger one takes its place.
        """
        size = int(np.prod(shape)) * kind.itemsize
        buffer = self._host_buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = self._host_buffers[name] = self._memory.on_host(size)
        return buffer[:size].view(kind).reshape(shape)
