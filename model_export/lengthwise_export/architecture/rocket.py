"""A rocket model: shares of steps at which fixed kernels are above a bias, and a linear head.

```
values -> standardize -> grid -> kernels at each dilation -> share of steps above each bias -> linear head
   |                                                                                              ^
   └──────────────────> features of the sequence: length, level, scale ───────────────────────────┘
```
The method is MiniRocket: A. Dempster, D. F. Schmidt, G. I. Webb, "MiniRocket: A Very Fast (Almost) Deterministic
Transform for Time Series Classification", KDD 2021, https://arxiv.org/abs/2012.08791. A kernel has nine weights, six
of them -1 and three of them 2, so there are 84, each at several dilations. They see differences between steps only
(their sum is 0), so level and scale of a sequence are features of their own, where the spec asks for them. Half of the
kernels read zeros beyond both ends; the others are applied only where all nine weights have a step. docs/spec.md says
what is decided for sequences of different lengths.

The values are rounded to a grid, multiples of a power of two, that makes every sum of a kernel exact: a float32 sum of
numbers on one grid is exact as long as it stays below 2**24 times the grid's spacing. So the sums, the comparisons and
the counts have the same bits alone and in every batch, in any order of addition, and on every machine that follows
IEEE 754. The grid depends only on the largest value of the sequence, or of the training split.

A *share* is a feature of the head: the share of a sequence's steps at which a kernel's result is above one bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.exporter_api.graphs import KERNELS, TAPS, DilatedKernels, fixed_kernels, kernel_weights
from lengthwise_export.architecture import layers
from lengthwise_export.architecture.model import ClassifierOutput
from lengthwise_export.architecture.normalization import Normalize, SequenceFeatures
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.static_values import StaticValues
from lengthwise_export.errors import CheckpointError
from lengthwise_export.masks import step_mask

__all__ = [
    "HALF_SPAN",
    "MAX_CHANNELS",
    "MAX_DILATIONS",
    "Grid",
    "KernelsAtDilation",
    "RocketClassifier",
    "Sequences",
    "convolve",
    "divide_biases",
    "first_layer",
    "fit_kernels",
    "fixed_kernels",
    "from_tensors",
    "untrained",
    "with_fitted_kernels",
]

Sequences = Sequence[NDArray[np.float32]]  # each `[length, features]`

MAX_DILATIONS: Final = 32  # as in the paper
MAX_CHANNELS: Final = 9  # features that a kernel reads
HALF_SPAN: Final = TAPS // 2  # steps before and after the middle of a kernel, at dilation 1

_WEIGHTS: Final = kernel_weights()
_GOLDEN_RATIO: Final = (np.sqrt(5) + 1) / 2
_MANTISSA_BITS: Final = 24
_LARGEST: Final = float(fixed_kernels.POWERS[-1])
_LONGEST: Final = 2**24
_STEPS_IN_CACHE: Final = 1024
_FEWEST_AT_ONCE, _MOST_AT_ONCE = 4, 32  # biases of a kernel that are compared in one operation
_UNTRAINED_LENGTH, _UNTRAINED_SEQUENCES = 100, 8


class Grid(nn.Module):
    """Rounds each sequence to a grid on which sums of a kernel are exact.

    The spacing of a grid is `2**-bits` of its limit, which is the smallest power of two that is not below the largest
    absolute value: of the sequence (`limit` is None), or of the training split (`limit`), to which values are clipped.
    Values below 2**-80 become zero, and those beyond 2**120 become 2**120. The more features a kernel may read, the
    coarser is the grid.
    """

    powers: Tensor
    distance: Tensor  # the spacing of the training split's grid

    def __init__(self, features: int, limit: float | None = None) -> None:
        super().__init__()
        # A sum is at most this many times the limit: the absolute weights of a kernel have the sum 12
        self.bits = _MANTISSA_BITS - math.ceil(math.log2((6 * 1 + 3 * 2) * min(features, MAX_CHANNELS)))
        self.limit = limit
        if limit is None:
            # The powers of two among which the limit of a sequence is chosen
            self.register_buffer("powers", torch.from_numpy(fixed_kernels.POWERS.copy()), persistent=False)
        else:
            self.register_buffer("distance", torch.tensor(limit * 2.0**-self.bits))

    def forward(self, steps: Tensor) -> Tensor:
        """`[rows, width, features]`: the steps, rounded to the grid; they must be zeros at padding, and stay so."""
        limit = self.limit or _LARGEST
        steps = steps.clamp(-limit, limit)
        if self.limit is not None:
            return torch.round(steps / self.distance) * self.distance
        largest = steps.abs().amax(dim=(1, 2), keepdim=True)  # (rows, 1, 1)
        own_limit = torch.where(self.powers >= largest, self.powers, _LARGEST).amin(dim=2, keepdim=True)
        distance = own_limit * 2.0**-self.bits
        return torch.round(steps / distance) * distance

    def clipped(self, steps: Tensor) -> Tensor | None:
        """`[rows]`: how many values of each sequence exceed the limit of the training split; None without a limit."""
        return None if self.limit is None else (steps.abs() > self.limit).to(torch.float32).sum(dim=(1, 2))


class KernelsAtDilation(nn.Module):
    """Computes the shares of steps at which the 84 kernels at one dilation are above their biases.

    `biases_at_once` biases of a kernel are compared in one operation.
    """

    weights: Tensor  # `[84, features, 9]`, zeros for features that a kernel does not read
    biases: Tensor  # `[84, biases, 1]`
    inside: Tensor  # `[84, 1]`: whether a kernel is applied only where all nine weights have a step

    def __init__(self, kernels: DilatedKernels, biases_at_once: int) -> None:
        super().__init__()
        self.dilation = kernels.dilation
        self.biases_at_once = biases_at_once
        # The first two are not read here: they are stored in the checkpoint, for `from_tensors`
        self.register_buffer("distance", torch.tensor(kernels.dilation))
        self.register_buffer("reads", torch.from_numpy(kernels.reads))
        self.register_buffer("biases", torch.from_numpy(kernels.biases)[:, :, None])
        self.register_buffer("inside", torch.from_numpy(kernels.inside)[:, None])
        weights = kernels.reads[:, :, None] * kernel_weights()[:, None, :]
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)

    def forward(self, steps: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """`[rows, 84 * biases]`: the shares of `steps [rows, features, width]`, zeros at padding.

        Kernels of `inside` read zeros beyond the ends, too, in a sequence that is too short for them.
        """
        reach = HALF_SPAN * self.dilation
        results = functional.conv1d(steps, self.weights, padding=reach, dilation=self.dilation)  # (rows, 84, width)
        row_ends = lengths.view(-1, 1, 1)
        is_short = row_ends <= 2 * reach
        positions = torch.arange(steps.shape[2], device=steps.device)
        has_all_steps = (positions >= reach) & (positions < row_ends - reach)  # (rows, 1, width)
        # Which steps count for which kernel; the others are below every bias
        counted = mask.unsqueeze(1) & (~self.inside | is_short | has_all_steps)  # (rows, 84, width)
        results = torch.where(counted, results, layers.LOWEST)
        # Compare, and count the steps above each bias
        is_above = [results.unsqueeze(2) > biases for biases in torch.split(self.biases, self.biases_at_once, dim=1)]
        counts_above = torch.cat(
            [group.to(torch.float32).sum(dim=3) for group in is_above], dim=2
        )  # (rows, 84, biases)
        steps_counted = torch.where(self.inside & ~is_short, row_ends - 2 * reach, row_ends)  # (rows, 84, 1)
        return (counts_above / steps_counted.to(torch.float32)).flatten(1)


class RocketClassifier(nn.Module):
    """A linear classifier of rocket features."""

    def __init__(self, spec: Spec, kernels: Sequence[DilatedKernels], grid: Grid) -> None:
        super().__init__()
        self.first = first_layer(spec)
        self.grid = grid
        self.plan = fixed_kernels.plan(kernels, grid.bits, grid.limit)
        # The results of a comparison should stay in the processor's cache: twice as fast for sequences of 300 steps.
        # For short sequences, fewer and larger operators are faster. The longest kernel shows how long sequences are.
        length = (TAPS - 1) * max(group.dilation for group in kernels)
        biases_at_once = min(max(_STEPS_IN_CACHE // length, _FEWEST_AT_ONCE), _MOST_AT_ONCE)
        self.dilations = nn.ModuleList(KernelsAtDilation(group, biases_at_once) for group in kernels)
        kinds = spec.model.sequence_features
        self.sequence_features = SequenceFeatures(kinds, spec.input.features or 0) if kinds else None
        static = spec.input.static_input
        self.static_values = None if static is None else StaticValues(static)
        # How many of the head's inputs, the last ones, are features of the whole sequence, or static values
        self.static_level = 0 if self.static_values is None else self.static_values.out_features
        of_sequence = 0 if self.sequence_features is None else self.sequence_features.out_features
        self.sequence_level = of_sequence + self.static_level
        width = sum(group.biases.size for group in kernels) + self.sequence_level
        self.head = nn.Linear(width, len(spec.output.labels))

    def features(self, values: Tensor, lengths: Tensor, static: Tensor | None = None) -> Tensor:
        """`[rows, features]`: what the head reads, the shares, then the features of the sequence, and static values.

        The arguments are those of `forward`.
        """
        mask = step_mask(lengths, values.shape[1])  # (rows, width)
        return self._head_inputs(values, self.first(values, mask), lengths, mask, static)

    def _head_inputs(
        self, values: Tensor, steps: Tensor, lengths: Tensor, mask: Tensor, static: Tensor | None
    ) -> Tensor:
        """`[rows, features]`: the shares, computed from `steps`, and then the features of the sequence, from `values`.

        `steps` is what the first layer gives for `values`, `[rows, width, channels]`. The kernels in C compute the
        shares where they run, with the same bits as the operators of torch.
        """
        if fixed_kernels.INSTRUCTION_SETS and values.is_cpu and not torch.compiler.is_exporting():
            rows = [row[:length] for row, length in zip(steps.numpy(), lengths.tolist(), strict=True)]
            shares = torch.from_numpy(fixed_kernels.shares(self.plan, rows))
        else:
            shares = self.by_operators(steps, lengths, mask)
        features = [shares]
        if self.sequence_features is not None:
            features.append(self.sequence_features(self.first.rescaled(values, mask), lengths))
        if self.static_values is not None and static is not None:
            features.append(self.static_values(static))
        return torch.cat(features, dim=1)

    def by_operators(self, steps: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """`[rows, shares]`: the shares, computed by operators of torch, as they are exported.

        `steps`: `[rows, width, channels]`, the first layer's output, zeros at padding.
        """
        turned = self.grid(steps).transpose(1, 2)  # (rows, channels, width)
        return torch.cat([kernels(turned, lengths, mask) for kernels in self.dilations], dim=1)

    def forward(self, values: Tensor, lengths: Tensor, static: Tensor | None = None) -> ClassifierOutput:
        """Classifies a batch: `values [rows, width, features]`, with NaN for missing values, and `lengths [rows]`.

        `static` are the static values `[rows, count]`; None if the model takes none.
        """
        mask, head = step_mask(lengths, values.shape[1]), self.head
        steps = self.first(values, mask)
        # In float64: a sum of thousands of float32 products depends in its last digits on its order
        features = self._head_inputs(values, steps, lengths, mask, static).double()
        logits = functional.linear(features, head.weight.double(), head.bias.double()).float()
        return ClassifierOutput(logits, clipped=self.grid.clipped(steps))


def from_tensors(spec: Spec, tensors: Mapping[str, Tensor]) -> RocketClassifier:
    """Makes a model with the fitted kernels and the grid of a checkpoint; other weights are not loaded.

    Raises:
        CheckpointError: There are no kernels, or they are damaged or those of another spec.
    """
    features = first_layer(spec).out_features
    fitted: list[DilatedKernels] = []
    while (prefix := f"dilations.{len(fitted)}.") + "distance" in tensors:
        try:
            kernels = DilatedKernels(
                dilation=int(tensors[prefix + "distance"]),
                reads=tensors[prefix + "reads"].numpy(),
                biases=tensors[prefix + "biases"][:, :, 0].numpy(),
                inside=tensors[prefix + "inside"][:, 0].numpy(),
            )
            _require_whole(kernels, features)
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's kernels are damaged at {prefix}: {error}") from error
        fitted.append(kernels)
    if not fitted:
        raise CheckpointError("the checkpoint has no kernels: it is not that of a rocket model")
    grid = Grid(features)
    if spec.model.grid == "training":
        limit = tensors.get("grid.distance", torch.zeros(0)) * 2.0**grid.bits
        if limit.dim() or float(limit) not in fixed_kernels.POWERS:
            raise CheckpointError("the checkpoint's grid is damaged: its distance is no power of two")
        grid = Grid(features, float(limit))
    return RocketClassifier(spec, fitted, grid)


def _require_whole(kernels: DilatedKernels, features: int) -> None:
    """Makes sure that kernels of a checkpoint have the shapes, the types and the dilation that a training writes.

    Raises:
        ValueError: They have another form; the message says which.
    """
    reads, biases, inside = kernels.reads, kernels.biases, kernels.inside
    types = [str(array.dtype) for array in (reads, biases, inside)]
    has_all_kernels = {len(biases), len(inside)} == {KERNELS} and types == ["bool", "float32", "bool"]
    for is_wrong, why in (
        (
            reads.shape != (KERNELS, features) or not reads.any(axis=1).all(),
            f"they do not read {features} features, as the spec says",
        ),
        (not has_all_kernels, f"they are not {KERNELS}"),
        (not 0 < kernels.dilation < _LONGEST, f"their distance is {kernels.dilation}"),
    ):
        if is_wrong:
            raise ValueError(why)


def fit_kernels(sequences: Sequences, biases: int, *, reference_length: int, seed: int) -> list[DilatedKernels]:
    """Fits kernels to sequences: chooses the dilations, the features that each kernel reads, and its biases.

    The biases of a kernel are quantiles of its results on a sequence that is drawn at random.

    Args:
        sequences: Each `[length, features]`.
        biases: The number of biases of a kernel, over all dilations.
        reference_length: The number of steps that a kernel spans at most.
        seed: The seed of the random choice of features and sequences.

    Returns:
        The 84 kernels at each dilation.
    """
    random = np.random.default_rng(seed)
    features = sequences[0].shape[1]
    dilations, counts = divide_biases(biases, reference_length)
    # Which quantiles: the low-discrepancy sequence of the golden ratio, as in the paper
    fractions = (np.arange(1, KERNELS * biases + 1) * _GOLDEN_RATIO) % 1
    fitted, used = [], 0
    for index, (dilation, count) in enumerate(zip(dilations, counts, strict=True)):
        reads = _draw_features(random, features)
        quantiles = np.empty((KERNELS, count), dtype=np.float32)
        for kernel in range(KERNELS):
            results = convolve(sequences[int(random.integers(len(sequences)))][:, reads[kernel]], kernel, dilation)
            # as np.quantile, which takes ten times as long for so few numbers
            ranks = fractions[used : used + count] * (len(results) - 1)
            quantiles[kernel] = np.interp(ranks, np.arange(len(results)), np.sort(results))
            used += count
        inside = (np.arange(KERNELS) + index) % 2 == 1  # every second kernel, alternating by dilation
        fitted.append(DilatedKernels(dilation, reads, quantiles, inside))
    return fitted


def divide_biases(biases: int, reference_length: int) -> tuple[list[int], list[int]]:
    """Divides a kernel's biases among its dilations; returns the dilations, and the number of biases at each.

    The exponents of the dilations are spaced evenly, up to the longest kernel that fits into the reference length. What
    cannot be divided evenly goes to the smallest dilations.
    """
    largest_exponent = max(np.log2((max(reference_length, TAPS) - 1) / (TAPS - 1)), 0.0)
    dilation_count = min(biases, MAX_DILATIONS)
    # The small term: a whole number must not fall to the one below it by rounding
    spaced = np.floor(np.exp2(np.linspace(0, largest_exponent, dilation_count)) + 1e-9).astype(int)
    dilations, repetitions = np.unique(spaced, return_counts=True)
    counts = repetitions * biases // dilation_count
    while counts.sum() < biases:
        counts[: biases - counts.sum()] += 1
    return dilations.tolist(), counts.tolist()


def convolve(steps: NDArray[np.float32], kernel: int, dilation: int) -> NDArray[np.float32]:
    """The results of a kernel at each step, `[length]`, with zeros beyond both ends of the sequence.

    Args:
        steps: `[length, features]`, only the features that the kernel reads, which are added up.
        kernel: The index of the kernel, 0 to 83.
        dilation: The distance of neighbouring weights, in steps.
    """
    total = steps.sum(axis=1, dtype=np.float32)
    reach = HALF_SPAN * dilation
    padded = np.zeros(len(total) + 2 * reach, dtype=np.float32)
    padded[reach : reach + len(total)] = total
    taps = np.lib.stride_tricks.sliding_window_view(padded, len(total))[::dilation]  # (9, length)
    return np.asarray(_WEIGHTS[kernel] @ taps)


def _draw_features(random: np.random.Generator, features: int) -> NDArray[np.bool_]:
    """Draws for each kernel the features that it reads, at most `MAX_CHANNELS`: a mask `[84, features]`."""
    reads = np.zeros((KERNELS, features), dtype=np.bool_)
    largest_exponent = np.log2(min(features, MAX_CHANNELS) + 1)
    for row in reads:
        row[random.choice(features, int(2 ** random.uniform(0, largest_exponent)), replace=False)] = True
    return reads


def untrained(spec: Spec) -> RocketClassifier:
    """Makes a model whose kernels are fitted to random sequences, and whose head is untrained."""
    random = np.random.default_rng(0)
    first = first_layer(spec)
    shape = (min(spec.input.max_length, _UNTRAINED_LENGTH), first.out_features)
    drawn = [random.normal(size=shape).astype(np.float32) for _ in range(_UNTRAINED_SEQUENCES)]
    return with_fitted_kernels(spec, first, [torch.from_numpy(steps) for steps in drawn], seed=0)


def with_fitted_kernels(spec: Spec, first: Normalize, sequences: Sequence[Tensor], *, seed: int) -> RocketClassifier:
    """Makes a model: fits its kernels and its grid, takes a fitted first layer, and leaves the head untrained.

    Args:
        spec: The spec of the model.
        first: The fitted first layer.
        sequences: Its outputs for the training sequences, each `[length, features]`.
        seed: The seed of `fit_kernels`.
    """
    limit = None
    if spec.model.grid == "training":
        largest = max(float(steps.abs().max()) for steps in sequences)
        limit = next((power for power in fixed_kernels.POWERS.tolist() if power >= largest), _LARGEST)
    grid = Grid(first.out_features, limit)
    on_grid = [steps.numpy() for steps in layers.answer_in_batches(lambda steps, _lengths: grid(steps), sequences)]
    biases, longest = spec.model.kernels // KERNELS, max(map(len, sequences))
    model = RocketClassifier(spec, fit_kernels(on_grid, biases, reference_length=longest, seed=seed), grid)
    model.first = first
    return model


def first_layer(spec: Spec) -> Normalize:
    """Makes the layer that fills missing values and normalises, not fitted yet."""
    return Normalize(cast("int", spec.input.features), spec.input.missing, spec.concrete().input.normalize)
