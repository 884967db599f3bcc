"""What torch's exporter looks up anew at each export, once a process: it takes more than half of a small export."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Callable  # noqa: UP035

if TYPE_CHECKING:
    from torch.onnx._internal.exporter._registration import ONNXRegistry


@functools.cache
def keep() -> None:
    """Gives each export a copy of the first one's table of operators, to which it may add its own.

    Operators are looked for in the dispatcher once: no test registers one in C++.
    """
    from torch import _ops
    from torch._export import utils
    from torch.onnx._internal.exporter import _registration

    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)

    # One that keeps what it was subscripted with: torch does that 10,000 times an export.
    setattr(_ops, "Callable", Callable)  # noqa: B010

    registry = _registration.ONNXRegistry
    made = functools.cache(registry.from_torchlib)

    def from_torchlib(opset_version: int) -> ONNXRegistry:
        copy = registry()
        copy._opset_version = opset_version
        copy.functions = {name: [*known] for name, known in made(opset_version).functions.items()}
        return copy

    registry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[assignment, method-assign]
