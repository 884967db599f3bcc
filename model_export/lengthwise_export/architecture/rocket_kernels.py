"""The kernels of a rocket model: 84 fixed kernels with dilations, channels and biases, for sequences of any length.

The method is MiniRocket: A. Dempster, D. F. Schmidt, G. I. Webb, "MiniRocket: A Very Fast (Almost) Deterministic
Transform for Time Series Classification", KDD 2021, https://arxiv.org/abs/2012.08791. A kernel has nine weights, six
of them -1 and three of them 2, so there are 84. Each is applied at several dilations. A feature is the share of the
steps at which the result of a kernel is above a bias ("proportion of positive values"). Half of the kernels read zeros
before the first step and after the last one, as if the sequence went on there; the others are applied only where all
nine weights have a step.

What this module decides for sequences of different lengths:

- The dilations come from one length of the training sequences (`reference_length`), and stay the same for every
  sequence. Nothing depends on the width of a batch.
- A bias is a quantile of the results of its kernel on one training sequence, over the steps of that sequence.
- A kernel that is to be applied only inside the sequence is applied as if zeros surrounded it, if the sequence is too
  short for its span (`8 * dilation + 1` steps). So a sequence of one step has all features too.
- Several features: a kernel at a dilation reads the sum of one to nine features that are drawn at random, as the
  authors' extension to several features does. The number of them is drawn so that small numbers are more frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.runtime.fixed_kernels import KERNELS, TAPS, DilatedKernels, kernel_weights

Sequences = Sequence[NDArray[np.float32]]  # each `[length, features]`

MAX_DILATIONS: Final = 32  # as in the paper
MAX_CHANNELS: Final = 9  # features that a kernel reads
HALF_SPAN: Final = TAPS // 2  # steps before and after the middle of a kernel, at dilation 1

_WEIGHTS: Final = kernel_weights()
_GOLDEN_RATIO: Final = (np.sqrt(5) + 1) / 2


def fit(sequences: Sequences, biases: int, *, reference_length: int, seed: int) -> list[DilatedKernels]:
    """Chooses dilations, features and so many biases of each kernel, which spans at most the reference length."""
    random = np.random.default_rng(seed)
    features = sequences[0].shape[1]
    dilations, counts = spread(biases, reference_length)
    fractions = (np.arange(1, KERNELS * biases + 1) * _GOLDEN_RATIO) % 1
    fitted, used = [], 0
    for place, (dilation, count) in enumerate(zip(dilations, counts, strict=True)):
        reads = _draw_features(random, features)
        quantiles = np.empty((KERNELS, count), dtype=np.float32)
        for kernel in range(KERNELS):
            sequence = sequences[int(random.integers(len(sequences)))]
            results = convolve(sequence[:, reads[kernel]], kernel, dilation)
            # as np.quantile, which takes ten times as long for so few numbers
            wanted = fractions[used : used + count] * (len(results) - 1)
            quantiles[kernel] = np.interp(wanted, np.arange(len(results)), np.sort(results))
            used += count
        inside = (np.arange(KERNELS) + place) % 2 == 1
        fitted.append(DilatedKernels(dilation, reads, quantiles, inside))
    return fitted


def spread(biases: int, reference_length: int) -> tuple[list[int], list[int]]:
    """The dilations, and how many of the biases each of them gets.

    The exponents of the dilations are spaced evenly, up to the longest kernel that fits into the reference length. What
    cannot be divided evenly goes to the smallest dilations.
    """
    longest = max(np.log2((max(reference_length, TAPS) - 1) / (TAPS - 1)), 0.0)
    wanted = min(biases, MAX_DILATIONS)
    # a dilation that is a whole number must not fall below it by rounding
    exact = np.floor(np.exp2(np.linspace(0, longest, wanted)) + 1e-9).astype(int)
    dilations, shares = np.unique(exact, return_counts=True)
    counts = shares * biases // wanted
    counts[: biases - counts.sum()] += 1
    while counts.sum() < biases:
        counts[: biases - counts.sum()] += 1
    return dilations.tolist(), counts.tolist()


def convolve(steps: NDArray[np.float32], kernel: int, dilation: int) -> NDArray[np.float32]:
    """`[length]`, the results of a kernel at each step of `[length, features that it reads]`, with zeros around."""
    total = steps.sum(axis=1, dtype=np.float32)
    around = HALF_SPAN * dilation
    padded = np.zeros(len(total) + 2 * around, dtype=np.float32)
    padded[around : around + len(total)] = total
    taps = np.lib.stride_tricks.sliding_window_view(padded, len(total))[::dilation]  # (9, length)
    results: NDArray[np.float32] = _WEIGHTS[kernel] @ taps
    return results


def _draw_features(random: np.random.Generator, features: int) -> NDArray[np.bool_]:
    """`[84, features]`: for each kernel the features that it reads, at most `MAX_CHANNELS`."""
    reads = np.zeros((KERNELS, features), dtype=np.bool_)
    most = np.log2(min(features, MAX_CHANNELS) + 1)
    for row in reads:
        row[random.choice(features, int(2 ** random.uniform(0, most)), replace=False)] = True
    return reads
