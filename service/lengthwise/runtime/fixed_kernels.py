"""MiniRocket's fixed kernels in C: the shares of steps at which they are above biases, of valid steps only.

The graph of such a model is plain ONNX. `lengthwise.runtime.onnx.kernel_shares` finds the part of it that counts when a
graph is opened, and replaces it by the operator of `kernels/_shares.c`. Training calls the same code (`shares`).
On the grid every sum is exact, so the bits are those of the graph's own operators, on every processor.
A C compiler is needed at installation; without it onnxruntime runs the graph as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from lengthwise.runtime.kernels import _kernels
except ImportError:  # mypy reads the module's stub; an installation may lack the module
    _kernels = None  # type: ignore[assignment]

DOMAIN: Final = "lengthwise.rocket"
"""The domain of the operator SharesAboveBiases. It occurs in no file."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS["shares"]
"""The instruction sets that this processor and the kernels support, best first; empty if the kernels were not built."""
TAPS: Final = 9
"""Weights of a kernel."""
HIGH_TAPS: Final = np.array(list(combinations(range(TAPS), 3)))
"""`[84, 3]`: the indices of the three weights of 2; the other weights are -1."""
KERNELS: Final = len(HIGH_TAPS)
POWERS: Final = np.exp2(np.arange(-60, 121, dtype=np.float32))
"""The powers of two that a grid may end at: the smallest that is not below its values."""
EACH_ITS_OWN: Final = 121
"""In a plan, instead of the exponent of a grid's limit: each sequence has a grid of its own."""


@dataclass(frozen=True, slots=True)
class DilatedKernels:
    """The 84 kernels at one dilation: the distance between the steps of neighbouring weights."""

    dilation: int
    reads: NDArray[np.bool_]  # [84, features], whether a kernel reads a feature
    biases: NDArray[np.float32]  # [84, biases]
    inside: NDArray[np.bool_]  # [84], whether a kernel is applied only where all its weights have a step


class KernelPlan(NamedTuple):
    """Kernels as the C code reads them: whole numbers as `_shares.c` says, and all biases."""

    numbers: NDArray[np.int32]
    biases: NDArray[np.float32]


def kernel_weights() -> NDArray[np.float32]:
    """`[84, 9]`, the weights of the kernels."""
    weights = np.full((KERNELS, TAPS), -1, dtype=np.float32)
    np.put_along_axis(weights, HIGH_TAPS, 2, axis=1)
    return weights


def plan(kernels: Sequence[DilatedKernels], bits: int, limit: float | None = None) -> KernelPlan:
    """The plan of kernels at each dilation; at least one.

    The distance of the grid is `2**-bits` of its limit, one of `POWERS`, where values are clipped; without a limit, it
    is the smallest above the values of each sequence.
    """
    numbers = [kernels[0].reads.shape[1], bits, EACH_ITS_OWN if limit is None else int(np.log2(limit))]
    for group in kernels:
        numbers += [group.dilation, group.biases.shape[1]]
        for inside, reads in zip(group.inside, group.reads, strict=True):
            channels = np.flatnonzero(reads).tolist()
            numbers += [int(inside), len(channels), *channels]
    return KernelPlan(
        np.array(numbers, np.int32),
        np.concatenate([kernels_at_dilation.biases.ravel() for kernels_at_dilation in kernels], dtype=np.float32),
    )


def shares(plan: KernelPlan, sequences: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """`[sequences, biases]`: the share of each sequence's steps at which a kernel is above a bias.

    Sequences are `[length, features]`. One with NaN, or of no steps, gets NaN. ValueError if the plan is damaged, or is
    for another number of features.
    """
    result = np.empty((len(sequences), plan.biases.size), np.float32)
    values = np.concatenate([np.empty((0, int(plan.numbers[0])), np.float32), *sequences])
    lengths = np.array([len(steps) for steps in sequences], np.int32)
    _kernels.shares(plan.numbers, plan.biases, np.ascontiguousarray(values, np.float32), lengths, result)
    return result
