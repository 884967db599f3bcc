"""LSTM and GRU for onnxruntime that compute valid steps only (`_kernels.c`).

`numbers` is what the kernels multiply, "float32" or "int8", "shares" for those of `fixed_kernels`,
"convolutions" for those of `onnx.convolutions`, "summaries" for those of `onnx.summaries`, or "attention" for those of
`onnx.valid_attention`.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = Literal["float32", "int8", "shares", "convolutions", "summaries", "attention"]

INSTRUCTION_SETS: dict[Numbers, tuple[str, ...]]
"""Those that this processor has, best first."""

def offer(numbers: Numbers, /) -> str:
    """Names the kernels that the next session of this thread registers.

    Gives their instruction set; RuntimeError where this processor has none.
    """

def choose(numbers: Numbers, instruction_set: str, /) -> None:
    """Makes the kernels of sessions opened from now on use one; ValueError of one that this processor has not."""

def chosen(numbers: Numbers, /) -> str:
    """The instruction set that sessions opened from now on use; empty where this processor has none."""

def lend(count: int, soon: bool, /) -> None:
    """Says how many cores are idle: as many directions of layers may run beside their own thread.

    `soon` says that a batch is about to run, so that a thread wakes up beforehand.
    """

def shares(
    plan: NDArray[np.int32],
    biases: NDArray[np.float32],
    values: NDArray[np.float32],
    lengths: NDArray[np.int32],
    to: NDArray[np.float32],
    /,
) -> None:
    """Computes shares of steps above biases; see `lengthwise.runtime.fixed_kernels`.

    ValueError of a damaged plan, or of arrays that do not fit each other.
    """

def helped() -> float:
    """The processor time, in seconds, that other threads have ever worked for this one."""

def background(on: bool, /) -> None:
    """Whether layers that run in this thread let others run first, at each step."""

def from_base64url(text: str | bytes, /) -> bytes | None:
    """The bytes of a text in base64url without padding; None for any other text, or another form of one."""

def to_base64url(content: bytes, /) -> str:
    """The text of bytes in base64url without padding."""

def are_finite(form: str, numbers: bytes, /) -> bool:
    """Whether no number is NaN or infinite. `form` is as of `struct`, each kind after its count: f, d, i and q.

    ValueError where there are fewer numbers than the form says.
    """
