"""Recurrent layers that compute valid steps only, for graphs that run on the CPU.

Onnxruntime's own LSTM and GRU compute every row of a batch up to the longest, and drop what lies past a row's own
length. The kernels of `_recurrent_kernels.c` sort the rows by length and compute at each step those that have it: they
neither compute padding nor read it. A session that registers them takes them in the place of onnxruntime's, whatever
the graph is; the graph itself is the same file.

They want AVX-512 or AVX2, and a compiler at installation. Without, where a graph wants of a cell what they do not know
(peepholes, activations of its own, weights that are computed), and where it takes NaN, onnxruntime's kernels run. What
they are worth: `python -m benchmarks.kernels`.
"""

from __future__ import annotations

from typing import Any, Final

try:
    from lengthwise.runtime import _recurrent_kernels as _kernels
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _kernels = None  # type: ignore[assignment]

ONNXRUNTIME: Final = "onnxruntime"
"""What runs recurrent layers where these kernels do not."""
COMPILED: Final = _kernels is not None
"""Whether the module in C is there."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = _kernels.INSTRUCTION_SETS if COMPILED else ()
"""Those that this processor has and the kernels are made for, best first; empty where they cannot run."""


def register(options: Any) -> str:
    """Has the sessions opened with these options run recurrent layers in the kernels.

    Args:
        options: Onnxruntime's `SessionOptions`.

    Returns:
        The instruction set that they use, one of `INSTRUCTION_SETS`, which must not be empty.
    """
    options.register_custom_ops_library(_kernels.__file__)
    return _kernels.chosen()


def described(*, wanted: bool) -> str:
    """How recurrent layers run on the CPU, and why, for the log."""
    if wanted and INSTRUCTION_SETS:
        return f"valid steps only, with {_kernels.chosen()}"
    if not wanted:
        why = "as was asked for"
    elif COMPILED:
        why = "as this processor has neither AVX-512 nor AVX2"
    else:
        why = "as lengthwise.runtime._recurrent_kernels was not built (no C compiler, or no headers)"
    return f"in onnxruntime's own kernels, {why}"


def choose(instruction_set: str) -> None:
    """Makes the kernels of sessions opened from now on use that set: tests and benchmarks compare them.

    Raises:
        ValueError: This processor has it not.
    """
    if instruction_set not in INSTRUCTION_SETS:
        raise ValueError(f"{instruction_set} is not one of {', '.join(INSTRUCTION_SETS) or 'none'}")
    _kernels.choose(instruction_set)
