"""Series of different lengths: what a summary is computed from, once in NumPy and once as nodes of a graph.

A *series* is the values of one feature of one sequence. A `Series` holds many of them, one after the other as NumPy
arrays, and computes with all at once; `series_graph.GraphSeries` does the same with padded values of an ONNX graph. A
summary is written once, for both, with NumPy's operators and functions on two kinds of numbers: *steps*, one for each
step of each series, and *columns*, one or more for each series, `[..., columns]`.

**Every number has the same bits in both, alone and in any batch.** Elementwise operations in float64 round in one way
everywhere. A sum does not: it depends on its order. So values are rounded to a grid before they are added
(`on_grid`), so fine that float32 does not show it, on which every sum is exact, in any order.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = Any
"""Steps or columns: a NumPy array, or a value of a graph that takes part in NumPy's operators and functions."""

MOST_STEPS: Final = 2**20
"""Steps of the longest sequence: so many numbers of `on_grid` have an exact sum."""
MOST_STEPS_OF_SPECTRUM: Final = 2**12
"""Steps of the longest sequence with a spectrum, as a graph's matrices for it grow with the square of the length.

An export of `bands` and `intervals` takes 1.3 GB of memory with so many, and 11 GB with four times as many.
"""
SPECTRUM_BITS: Final = 21
"""The values of a spectrum have one more, times a cosine of 17: sums of up to `2**14` are exact."""
LARGEST: Final = float(np.finfo(np.float32).max)
"""The largest float32: a summary that is larger is it."""
_FACTORS: Final = [2 * np.pi, *(-(4 * np.pi * np.pi) / (n * (n - 1)) for n in range(3, 25, 2))]
_SINE: Final = [*accumulate(_FACTORS, operator.mul)]
"""The Taylor series of sin(2 pi v): the factors of v, v**3, v**5 and so on. For |v| <= 1/4 it has all of float64."""


def on_grid(values: Numbers, largest: Numbers, bits: int = 32) -> Numbers:
    """Rounds values to multiples of a number, about `largest * 2**-bits`.

    Args:
        values: None is larger than `largest`, up to its sign.
        largest: The largest absolute value.
        bits: Up to `2**(52 - bits)` such multiples have an exact sum, as one is at most `2**(bits + 1)` of that number.
    """
    shift = largest * 2.0 ** (53 - bits)
    return (values + shift) - shift


def ratio(numerator: Numbers, denominator: Numbers) -> Numbers:
    """The quotient of two numbers; 0 where the denominator, which is not negative, is 0."""
    return np.where(denominator > 0.0, numerator / np.where(denominator > 0.0, denominator, 1.0), 0.0)


def waves(positions: Numbers, length: Numbers) -> list[Numbers]:
    """Cosine and sine of `2 pi positions / length`, by elementwise operations, each as a sum of two numbers.

    Returns:
        The cosine's first part, a multiple of `2**-17`, and its rest, a multiple of `2**-34`; the same of the sine.
    """
    parts = []
    for turns in (0.0, 0.75):
        fraction = positions / length + turns
        angle = np.abs(fraction - np.floor(fraction) - 0.5) - 0.25  # cos(2 pi f) is sin(2 pi angle)
        square, wave = angle * angle, _SINE[-1]
        for factor in reversed(_SINE[:-1]):
            wave = wave * square + factor
        first = on_grid(wave * angle, 1.5, 18)
        parts += [first, on_grid(wave * angle - first, 1.5 * 2.0**-17, 18)]
    return parts


def amplitude(products: Sequence[Numbers]) -> Numbers:
    """The absolute value of a complex number, from the values times the four parts that `waves` returns."""
    real, imaginary = products[0] + products[1], products[2] + products[3]
    return np.sqrt(real * real + imaginary * imaginary)


class Series:
    """Many series of at least one value each, without missing ones; here as NumPy arrays, without padding.

    Steps are `[steps of all series]`, columns are `[features, sequences, columns]`. Of parts of these series, a third
    axis of three has the parts.

    Attributes:
        values: Steps.
        count: A column: how many values a series has.
        position: Steps: which step of its series a step is, from 0.
    """

    values: Numbers
    count: Numbers
    position: Numbers

    def __init__(self, values: NDArray[np.float64], counts: NDArray[np.intp]) -> None:
        """Takes the values of all series, one after the other, and how many each has: `[features, sequences]`."""
        self.values = values
        self._counts = counts
        self._flat_counts = counts.ravel()
        self._flat_starts = np.cumsum(self._flat_counts) - self._flat_counts
        self.count = counts[..., None].astype(np.float64)
        self.position = np.arange(len(values)) - self.spread(self._flat_starts.reshape(self.count.shape)).astype(float)

    def spread(self, column: Numbers) -> Numbers:
        """A column as steps: each step gets the number of its series."""
        return np.repeat(np.broadcast_to(column, self.count.shape).ravel(), self._flat_counts)

    def largest(self, steps: Numbers) -> Numbers:
        """A column: the largest number of each series."""
        return np.maximum.reduceat(steps, self._flat_starts).reshape(self.count.shape)

    def _sum(self, steps: Numbers) -> Numbers:
        """A column: the sum of each series, of numbers whose sum is exact."""
        return np.add.reduceat(steps, self._flat_starts).reshape(self.count.shape)

    def at(self, steps: Numbers, positions: Numbers) -> Numbers:
        """The numbers of each series at these positions, in the form of `positions`: columns, or steps."""
        starts = self._flat_starts.reshape(self.count.shape)
        return steps[positions.astype(np.intp) + (self.spread(starts) if positions.ndim == 1 else starts)]

    def longest_run(self, flags: Numbers) -> Numbers:
        """A column: how many steps follow each other at most at which a flag is true."""
        run = np.cumsum(~flags | (self.position == 0))  # a run begins with each series, and with each false flag
        return self.largest(np.bincount(run, flags)[run])

    def ordered(self) -> Series:
        """The series with their values in ascending order."""
        series = np.repeat(np.arange(self._counts.size), self._flat_counts)
        return Series(self.values[np.lexsort((self.values, series))], self._counts)

    def shortened(self, steps: Numbers, by: int) -> Series:
        """Series of other values that are `by` steps shorter. What has no step left is one zero."""
        values = np.where(self.position < self.spread(self.count - by), steps, 0.0)
        counts = np.maximum(self._counts - by, 1)
        return Series(values[self.position < self.spread(counts[..., None])], counts)

    def parts(self, begins: Numbers, ends: Numbers) -> Series:
        """Parts of each series as series, from columns with where they begin and end, one for each part."""
        counts = (ends - begins).astype(np.intp)
        starts = begins.astype(np.intp) + self._flat_starts.reshape(self.count.shape)
        before = np.cumsum(counts) - counts.ravel()
        indices = np.arange(counts.sum()) + np.repeat(starts.ravel() - before, counts.ravel())
        return Series(self.values[indices], counts)

    def joined(self, columns: Numbers, chosen: NDArray[np.intp]) -> Numbers:
        """Columns of parts, `[..., parts, columns]`, as columns of their series in one axis, and these of them."""
        return columns.reshape(*columns.shape[:2], -1)[..., chosen]

    def of_features(self, steps: Numbers, indices: NDArray[np.intp]) -> Series:
        """Series of these features' numbers; an index may occur more than once. All features have the same lengths."""
        return Series(steps.reshape(len(self._counts), -1)[indices].ravel(), self._counts[indices])

    def spectrum(self) -> Series:
        """The absolute values of the discrete Fourier transform, at the frequencies 0 to half the length.

        All features have the same lengths, at most `MOST_STEPS_OF_SPECTRUM`.
        """
        values = on_grid(self.values, self.spread(self.largest(np.abs(self.values))), SPECTRUM_BITS)
        counts = self._counts // 2 + 1
        results = np.empty(counts.sum())
        starts = np.cumsum(counts) - counts.ravel()
        for length in np.unique(self._flat_counts):
            chosen = self._flat_counts == length
            steps, frequencies = np.arange(length), np.arange(length // 2 + 1)
            tables = [part[np.outer(steps, frequencies) % length] for part in waves(steps.astype(float), float(length))]
            sequences = values[self._flat_starts[chosen, None] + steps]  # (series, length)
            results[starts[chosen, None] + frequencies] = amplitude([sequences @ table for table in tables])
        return Series(results, counts)

    def total(self, steps: Numbers) -> Numbers:
        """A column: the sum of each series, with the same bits in any order."""
        return self._sum(on_grid(steps, self.spread(self.largest(np.abs(steps)))))

    @cached_property
    def mean(self) -> Numbers:
        """A column: the arithmetic mean. Of equal values it is this value."""
        return self.total(self.values) / self.count

    @cached_property
    def deviations(self) -> Numbers:
        """Steps: the values without the mean."""
        return self.values - self.spread(self.mean)

    @cached_property
    def variance(self) -> Numbers:
        """A column: the mean squared deviation."""
        return self.total(self.deviations * self.deviations) / self.count
