"""Recurrent layers in 8-bit integers, for graphs at int8 that run on the CPU.

An int8 graph is plain ONNX: its LSTM and GRU get weights that are stored as bytes and dequantised. onnxruntime alone
computes these layers in float32. The kernels of `_integer_kernels.c` multiply the bytes themselves.
`lengthwise.runtime.onnx.integer_layers` finds such layers when a graph is opened.

A sequence's numbers are exact sums of integers and float operations in a fixed order: they are the same in every batch,
and on every instruction set. The kernels run on every processor; a C compiler is needed at installation.
"""

from __future__ import annotations

from typing import Any, Final

try:
    from lengthwise.runtime import _integer_kernels as _kernels
except ImportError:  # mypy reads the module's stub; an installation may lack the module
    _kernels = None  # type: ignore[assignment]

DOMAIN: Final = "lengthwise.integer"
"""The domain of the operators LSTM and GRU of these kernels. It occurs in no file."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS
"""The instruction sets that this processor and the kernels support, best first; empty if the kernels were not built."""


def register(options: Any) -> str:
    """Lets sessions with these options run the operators of `DOMAIN`. `INSTRUCTION_SETS` must not be empty.

    Args:
        options: onnxruntime's `SessionOptions`.

    Returns:
        The instruction set that the kernels use, one of `INSTRUCTION_SETS`.
    """
    options.register_custom_ops_library(_kernels.__file__)
    return _kernels.chosen()


def share(spare_cores: object) -> None:
    """Makes these kernels use the idle cores, and the threads for them, of `recurrent_kernels`, which calls it.

    So a service with models in float32 and at int8 lends no core twice.

    Args:
        spare_cores: The capsule of the other library.
    """
    if _kernels is not None:
        _kernels.share(spare_cores)


def run_in_background(on: bool) -> None:
    """Lets others run first; see `recurrent_kernels.run_in_background`, which calls it."""
    if _kernels is not None:
        _kernels.background(on)


def helped_seconds() -> float:
    """The processor time that other threads have ever worked for this one, in these kernels."""
    return _kernels.helped() if INSTRUCTION_SETS else 0.0


def choose(instruction_set: str) -> None:
    """Sets the instruction set for sessions opened from now on, in the whole process; for tests and benchmarks.

    Raises:
        ValueError: This processor does not support it.
    """
    if instruction_set not in INSTRUCTION_SETS:
        raise ValueError(f"{instruction_set} is not one of {', '.join(INSTRUCTION_SETS) or 'none'}")
    _kernels.choose(instruction_set)
