"""One batch in flight on a device: buffers that are made once, and the run that is bound to them.

```
array ─> page-locked buffer ─> the device's buffer ─┐                       (what the device reads)
array ─> page-locked buffer ────────────────────────┴> run ─> page-locked buffer ─> array
```

Nothing is allocated for a batch whose shape is no larger than those before it. Lengths, which onnxruntime's recurrent
kernels read on the host, stay there; only the outputs that were asked for are copied back. A slot belongs to one thread
at a time: `lengthwise.runtime.session` hands it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.device_memory import Buffer, Bytes, Memory
from lengthwise.runtime.provider import Device

Shape = tuple[int, ...]


class Slot:
    """The buffers of one batch in flight, and its binding.

    Args:
        session: onnxruntime's session on the device.
        device: Where it runs.
        memory: Where the buffers come from.
        on_device: Names of the inputs that the device reads.
    """

    def __init__(self, session: Any, device: Device, memory: Memory, on_device: Collection[str]) -> None:
        self._session = session
        self._device = device
        self._memory = memory
        self._on_device = frozenset(on_device)
        self._binding = session.io_binding()
        self._host: dict[str, Bytes] = {}
        self._there: dict[str, Buffer] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, Shape]) -> dict[str, NDArray[np.float32]]:
        """Runs the graph once.

        Args:
            inputs: By the graph's names.
            outputs: By the graph's names, the shape that each has for these inputs; all float32.

        Returns:
            The outputs, in arrays of their own.
        """
        binding = self._binding
        for name, array in inputs.items():
            staged = self._staged(name, array.shape, array.dtype)
            np.copyto(staged, array)
            if name in self._on_device:
                there = self._room_there(name, staged.nbytes)
                self._memory.upload(staged, there)
                place, index, address = self._device.provider.device_type, self._device.index, there.address
            else:
                place, index, address = "cpu", 0, staged.ctypes.data
            binding.bind_input(name, place, index, array.dtype.type, array.shape, address)
        binding.clear_binding_outputs()  # of the batch before, which may have wanted others
        found = {}
        for name, shape in outputs.items():
            found[name] = self._staged(name, shape, np.dtype(np.float32))
            binding.bind_output(name, "cpu", 0, np.float32, shape, found[name].ctypes.data)
        self._session.run_with_iobinding(binding)
        return {name: staged.copy() for name, staged in found.items()}

    def _staged(self, name: str, shape: Shape, kind: np.dtype[Any]) -> NDArray[Any]:
        """The beginning of a name's host buffer, in this form; the buffer grows where it is too small."""
        size = int(np.prod(shape)) * kind.itemsize
        held = self._host.get(name)
        if held is None or held.nbytes < size:
            held = self._host[name] = self._memory.on_host(size)
        return held[:size].view(kind).reshape(shape)

    def _room_there(self, name: str, size: int) -> Buffer:
        """A name's buffer on the device, likewise."""
        held = self._there.get(name)
        if held is None or held.size_bytes < size:
            held = self._there[name] = self._memory.on_device(size)
        return held
