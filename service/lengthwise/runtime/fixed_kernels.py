"""MiniRocket's fixed kernels in C: the shares of valid steps at which a kernel's convolution is above its biases.

The 84 *kernels* of MiniRocket have nine weights, three of 2 and six of -1, and are applied with several *dilations*.
The *grid* is a set of equally spaced numbers, to which the values of a sequence are rounded first. On it every sum is
exact, so the bits are those of the graph's own operators, on every processor.

The graph of such a model is plain ONNX. When it is opened, `lengthwise.runtime.onnx.kernel_shares` finds the part of it
that counts steps above biases, and replaces it by the operator of `kernels/_shares.c`. Training calls the same code
(`shares`). A C compiler is needed at installation; without it onnxruntime runs the graph as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.kernels import _kernels

DOMAIN: Final = "lengthwise.rocket"
"""The domain of the operator SharesAboveBiases. It occurs in no file."""
INSTRUCTION_SETS: Final[tuple[str, ...]] = () if _kernels is None else _kernels.INSTRUCTION_SETS["shares"]
"""The instruction sets that this processor and the kernels support, best first; empty if the kernels were not built."""
TAPS: Final = 9
"""How many weights a kernel has."""
HIGH_TAPS: Final = np.array(list(combinations(range(TAPS), 3)))
"""`[84, 3]`: the indices of the three weights of 2; the other weights are -1."""
KERNELS: Final = len(HIGH_TAPS)
POWERS: Final = np.exp2(np.arange(-60, 121, dtype=np.float32))
"""The powers of two that a grid may end at: the smallest that is not below its values."""
GRID_BY_SEQUENCE: Final = 121
"""In a plan, in the place of the exponent of the grid's limit: that of each sequence (`EACH_ITS_OWN` in the C code)."""


@dataclass(frozen=True, slots=True)
class DilatedKernels:
    """The 84 kernels at one dilation."""

    dilation: int  # the distance, in steps, between neighbouring weights
    reads: NDArray[np.bool_]  # [84, features], whether a kernel reads a feature
    biases: NDArray[np.float32]  # [84, biases], of each kernel
    inside: NDArray[np.bool_]  # [84], whether a kernel is applied only where all its weights have a step


class KernelPlan(NamedTuple):
    """Kernels and grid as the C code reads them."""

    numbers: NDArray[np.int32]  # in the order that `_shares.c` describes
    biases: NDArray[np.float32]  # of all kernels at all dilations


def kernel_weights() -> NDArray[np.float32]:
    """The weights of the 84 kernels, `[84, 9]`: each has three weights of 2 and six of -1."""
    weights = np.full((KERNELS, TAPS), -1, dtype=np.float32)
    np.put_along_axis(weights, HIGH_TAPS, 2, axis=1)
    return weights


def plan(kernels: Sequence[DilatedKernels], bits: int, limit: float | None = None) -> KernelPlan:
    """Encodes kernels and their grid as the numbers that the C code reads.

    Args:
        kernels: The kernels at each dilation, at least one.
        bits: The points of the grid are `limit * 2**-bits` apart.
        limit: The largest point of the grid, one of `POWERS`, to which values are clipped. None: each sequence has a
            limit of its own, the smallest of `POWERS` that is not below its values.
    """
    # 1. The head: the number of features, and the grid
    numbers = [kernels[0].reads.shape[1], bits, GRID_BY_SEQUENCE if limit is None else int(np.log2(limit))]
    # 2. Each dilation, and each of its kernels with the features that it reads
    for group in kernels:
        numbers += [group.dilation, group.biases.shape[1]]
        for inside, reads in zip(group.inside, group.reads, strict=True):
            channels = np.flatnonzero(reads).tolist()
            numbers += [int(inside), len(channels), *channels]
    return KernelPlan(
        numbers=np.array(numbers, np.int32),
        biases=np.concatenate([group.biases.ravel() for group in kernels], dtype=np.float32),
    )


def shares(plan: KernelPlan, sequences: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Computes the share of each sequence's steps at which a kernel's convolution is above a bias.

    The C code raises a ValueError if the plan is damaged, or is for another number of features.

    Args:
        plan: The kernels, biases and grid.
        sequences: Each `[length, features]`.

    Returns:
        The shares, `[sequences, biases]`; NaN for a sequence that has NaN, or no steps.
    """
    result = np.empty((len(sequences), plan.biases.size), np.float32)
    values = np.concatenate([np.empty((0, int(plan.numbers[0])), np.float32), *sequences])
    lengths = np.array([len(steps) for steps in sequences], np.int32)
    _kernels.shares(plan.numbers, plan.biases, np.ascontiguousarray(values, np.float32), lengths, result)
    return result
