"""The table of operators of torch's ONNX exporter, made once a process: making it takes half of each small export."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.onnx._internal.exporter._registration import ONNXRegistry


@functools.cache
def keep() -> None:
    """Lets each export have a copy of the first one's table, to which it may add its own operators."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    made = functools.cache(registry.from_torchlib)

    def from_torchlib(opset_version: int) -> ONNXRegistry:
        copy = registry()
        copy._opset_version = opset_version
        copy.functions = {name: [*known] for name, known in made(opset_version).functions.items()}
        return copy

    registry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[assignment, method-assign]
