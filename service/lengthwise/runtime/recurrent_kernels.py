"""The kernels in C for layers on the CPU: LSTM and GRU that compute valid steps only, and products of 8-bit integers.

onnxruntime's own LSTM and GRU compute every row of a batch up to the longest length, and discard what is past a row's
own length. The kernels of `kernels/_recurrent.c` compute a few rows side by side, and a row that ends hands its slot
to the next one: padding is neither computed nor read. A session that registers them uses them instead of onnxruntime's;
the graph is the same file. `onnx.fusion` lets the nodes around the layers compute valid steps only, too. They need
AVX-512, AVX2 or NEON.

An int8 graph is plain ONNX: its weights are stored as bytes and dequantised, and onnxruntime alone computes in float32.
The kernels of `kernels/_integer.c` multiply the bytes themselves, in the layers that `onnx.integer_layers` finds. A
sequence's numbers are exact sums of integers and float operations in a fixed order: they are the same in every batch,
and on every instruction set. They run on every processor.

All need a C compiler at installation. onnxruntime's kernels run without these, and for a graph that needs what they do
not support (peepholes, other activations, computed weights) or that accepts NaN.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from lengthwise.runtime.kernels import _kernels

if TYPE_CHECKING:
    from lengthwise.runtime.kernels._kernels import Numbers

ONNXRUNTIME: Final = "onnxruntime"
"""The name for onnxruntime's own kernels, where a name of kernels is otherwise an instruction set."""
POOLING: Final = "+attention"
"""What is added to the name of an instruction set if the kernels compute poolings, such as attention, or products too
(`onnx.fusion`): the answers are then rounded in another way."""
COMPILED: Final = _kernels is not None
"""Whether the C module was built."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = _kernels.INSTRUCTION_SETS["float32"] if COMPILED else ()
"""The instruction sets that both this processor and the kernels support, best first; empty if they cannot run."""
INTEGER_SETS: Final[tuple[str, ...]] = _kernels.INSTRUCTION_SETS["int8"] if COMPILED else ()
"""The same for products of integers."""
CONVOLUTION_SETS: Final[tuple[str, ...]] = _kernels.INSTRUCTION_SETS.get("convolutions", ()) if COMPILED else ()
"""The same for convolutions (`onnx.convolutions`)."""


def register(options: Any, numbers: Numbers = "float32") -> str:
    """Lets sessions with these `SessionOptions` use the kernels of a kind; returns their instruction set.

    `numbers` is a kind of kernels with at least one instruction set: `float32` (LSTM and GRU), `int8`, `shares` (the
    fixed kernels), `convolutions`, `summaries` or `attention`.
    """
    instruction_set = _kernels.offer(numbers)
    options.register_custom_ops_library(_kernels.__file__)
    return instruction_set


def choose(instruction_set: str, numbers: Numbers = "float32") -> None:
    """Sets the instruction set of a kind of kernels for sessions opened from now on, in the whole process.

    For tests and benchmarks. One that this processor does not support is a ValueError.
    """
    _kernels.choose(numbers, instruction_set)


def lend_cores(count: int, soon: bool = False) -> None:
    """Lends idle cores to the kernels: on each, the second direction of a bidirectional layer runs beside the first.

    Each call replaces the number of the call before. If that was larger, a direction leaves its core within a step, and
    the thread of the batch continues it. The bits of answers do not depend on this.

    Args:
        count: How many cores are idle.
        soon: Whether a batch is about to run: a helping thread then wakes up beforehand.
    """
    if COMPILED:
        _kernels.lend(count, soon)


def yield_after_steps(on: bool = True) -> None:
    """Sets whether layers that the calling thread runs yield the processor to other threads after each step.

    If they do not, and threads share a core, the system may let this thread run for milliseconds while another waits.
    """
    if COMPILED:
        _kernels.background(on)


def processor_seconds() -> float:
    """A clock for costs: processor time of the running thread, plus that of other threads for this thread's layers."""
    return time.thread_time() + (_kernels.helped() if COMPILED else 0.0)


def described(*, option: bool | None) -> str:
    """Describes for the log which kernels run recurrent layers on the CPU, and why.

    Args:
        option: The option `recurrent_kernels`: True for Lengthwise's kernels, False for onnxruntime's, None for
            whichever are faster for a model.
    """
    if option is not False and INSTRUCTION_SETS:
        unless = "" if option else ", unless onnxruntime's own kernels are faster for a model"
        return f"valid steps only, with {_kernels.chosen('float32')}{unless}"
    if option is False:
        why = "as was asked for"
    elif COMPILED:
        why = "as this processor has none of AVX-512, AVX2 and NEON"
    else:
        why = "as lengthwise.runtime.kernels was not built (no C compiler, or no headers)"
    return f"in onnxruntime's own kernels, {why}"
