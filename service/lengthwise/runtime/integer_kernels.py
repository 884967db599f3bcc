"""Recurrent layers in 8-bit integers, for graphs at int8 that run on the CPU.

An int8 graph is plain ONNX: its LSTM and GRU get weights that are stored as bytes and dequantised. onnxruntime alone
computes these layers in float32. The kernels of `kernels/_integer.c` multiply the bytes themselves.
`lengthwise.runtime.onnx.integer_layers` finds such layers when a graph is opened.

A sequence's numbers are exact sums of integers and float operations in a fixed order: they are the same in every batch,
and on every instruction set. The kernels run on every processor; a C compiler is needed at installation.
"""

from __future__ import annotations

from typing import Any, Final

from lengthwise.runtime import recurrent_kernels

try:
    from lengthwise.runtime.kernels import _kernels
except ImportError:  # mypy reads the module's stub; an installation may lack the module
    _kernels = None  # type: ignore[assignment]

DOMAIN: Final = "lengthwise.integer"
"""The domain of the operators LSTM and GRU of these kernels. It occurs in no file."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS["int8"]
"""The instruction sets that this processor and the kernels support, best first; empty if the kernels were not built."""


def register(options: Any) -> str:
    """Lets sessions with these options run the operators of `DOMAIN`. `INSTRUCTION_SETS` must not be empty.

    Args:
        options: onnxruntime's `SessionOptions`.

    Returns:
        The instruction set that the kernels use, one of `INSTRUCTION_SETS`.
    """
    return recurrent_kernels.offered(options, "int8")


def choose(instruction_set: str) -> None:
    """Sets the instruction set for sessions opened from now on, in the whole process; for tests and benchmarks.

    Raises:
        ValueError: This processor does not support it.
    """
    recurrent_kernels.choose_of("int8", instruction_set, INSTRUCTION_SETS)
