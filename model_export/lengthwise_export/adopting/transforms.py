"""The transforms of aeon and sktime in torch, on sequences of any length: MiniRocket and MultiRocket.

They add in the libraries' order, so that comparisons with biases have the same results: the sum of nine steps, from the
middle outwards on each side, then three times the value at three of them, then the features; each sum is a float32
operation of its own. For a sequence of the length of the training the features are those of the estimator. For another
length dilations and biases stay, steps are counted within the sequence, and a kernel that should be applied only inside
is applied as if zeros surrounded it, if it does not fit (where the libraries' code would fail).

Papers: MiniRocket, https://arxiv.org/abs/2012.08791; MultiRocket, https://arxiv.org/abs/2102.00457.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lengthwise.runtime.fixed_kernels import HIGH_TAPS, KERNELS, TAPS
from lengthwise_export.architecture.layers import LOWEST
from lengthwise_export.architecture.rocket import HALF_SPAN
from lengthwise_export.masks import step_mask


class FittedKernels(NamedTuple):
    """The kernels of another library at one dilation."""

    dilation: int
    biases: NDArray[np.float32]  # `[84, biases]`
    channels: Sequence[Sequence[int]]  # for each kernel the features that are read, in order of the additions


@dataclass(frozen=True, slots=True)
class FittedTransform:
    """A fitted transform of another library."""

    features: int
    values: Sequence[FittedKernels]  # at each dilation
    differences: Sequence[FittedKernels] | None = None  # MultiRocket: the kernels for the first differences
    in_double: bool = False  # MultiRocket: whether the library keeps differences in float64


class RocketTransform(nn.Module):
    """A fitted transform as a module of `(values, lengths)`."""

    def __init__(self, fitted: FittedTransform) -> None:
        super().__init__()
        self.several_poolings = fitted.differences is not None
        self.in_double = fitted.in_double
        self.values = _modules(fitted.values, fitted.features, left=0)
        # Both libraries shift the left half of the differences by one step less.
        self.differences = None if fitted.differences is None else _modules(fitted.differences, fitted.features, left=1)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, features]` of `values [rows, width, features]` and `lengths [rows]`."""
        mask = step_mask(lengths, values.shape[1]).unsqueeze(1)  # (rows, 1, width)
        steps = torch.where(mask, values.transpose(1, 2), 0.0)  # (rows, features, width)
        pooled = [kernels(steps, lengths, self.several_poolings) for kernels in self.values]
        features = _in_blocks(pooled)
        if self.differences is None:
            return features
        series = steps.double() if self.in_double else steps
        following = functional.pad(series, (0, 1))[:, :, 1:]
        is_kept = step_mask(lengths - 1, values.shape[1]).unsqueeze(1)
        changes = torch.where(is_kept, following - series, 0.0)
        of_changes = [kernels(changes, lengths - 1, self.several_poolings) for kernels in self.differences]
        return torch.cat([features, _in_blocks(of_changes)], dim=1)


class DilatedResults(nn.Module):
    """The kernels at one dilation, and the pooled features of their results.

    `inside [84]`: applied only inside the sequence; `left`: by how many steps less the left half is shifted.
    """

    biases: Tensor
    inside: Tensor
    reads: Tensor
    high: Tensor
    offsets: Tensor

    def __init__(self, fitted: FittedKernels, inside: NDArray[np.bool_], *, features: int, left: int) -> None:
        super().__init__()
        dilation, biases, channels = fitted
        self.dilation = dilation
        self.slots = max(map(len, channels))
        self.register_buffer("biases", torch.from_numpy(biases)[:, :, None])
        self.register_buffer("inside", torch.from_numpy(inside)[:, None])
        offsets = [tap * dilation + (left if tap < HALF_SPAN else 0) for tap in range(TAPS)]
        self.register_buffer("offsets", torch.tensor(offsets)[:, None])
        # the feature after the last one is zeros, for kernels that read fewer than others
        reads = np.full((self.slots, KERNELS), features)
        for kernel, read in enumerate(channels):
            reads[: len(read), kernel] = read
        self.register_buffer("reads", torch.from_numpy(reads.ravel()))
        high = [HIGH_TAPS[None, :, each] * (features + 1) + reads for each in range(3)]
        self.register_buffer("high", torch.from_numpy(np.stack([each.ravel() for each in high])))

    def forward(self, steps: Tensor, lengths: Tensor, several_poolings: bool) -> list[Tensor]:
        """The features `[rows, 84 * biases]` of each pooling, of `steps [rows, features, width]`."""
        results = self.results(steps)
        around = HALF_SPAN * self.dilation
        ends = lengths.view(-1, 1, 1)
        is_trimmed = self.inside & (ends > 2 * around)  # (rows, 84, 1)
        starts = torch.where(is_trimmed, around, 0)
        stops = torch.where(is_trimmed, ends - around, ends)
        places = torch.arange(steps.shape[2], device=steps.device)
        counted = (places >= starts) & (places < stops)  # (rows, 84, width)
        results = torch.where(counted, results, LOWEST).unsqueeze(2)  # (rows, 84, 1, width)
        is_above = results > self.biases  # (rows, 84, biases, width)
        above = is_above.to(torch.float32)
        number = above.sum(dim=3)  # (rows, 84, biases)
        counts = (stops - starts).clamp(min=1)  # (rows, 84, 1); a sequence of one step has no difference
        pooled = [number / counts.to(torch.float32)]
        if several_poolings:
            is_below = (results < self.biases) & counted.unsqueeze(2)
            pooled += [
                _longest_stretch(is_below, counted.unsqueeze(2), counts),
                _mean(torch.where(is_above, (results + self.biases).double(), 0.0).sum(dim=3), number, 0.0),
                _mean(torch.where(is_above, (places - starts).unsqueeze(2).double(), 0.0).sum(dim=3), number, -1.0),
            ]
        return [each.flatten(1) for each in pooled]

    def results(self, steps: Tensor) -> Tensor:
        """`[rows, 84, width]` float32, what each kernel gives at each step."""
        around = HALF_SPAN * self.dilation
        places = torch.arange(steps.shape[2], device=steps.device) + self.offsets  # (9, width)
        # with zeros around, and a feature of zeros; looked up at once, because an export takes time for each operator
        taps = functional.pad(steps, (around, around, 0, 1))[:, :, places]  # (rows, features + 1, 9, width)
        each_low = (-taps).unbind(2)
        total = each_low[HALF_SPAN].float()
        for tap in (*range(HALF_SPAN), *range(HALF_SPAN + 1, TAPS)):
            total = (total.to(steps.dtype) + each_low[tap]).float()
        lows = total.index_select(1, self.reads)  # (rows, slots * 84, width)
        highs = (taps + taps + taps).float().transpose(1, 2).flatten(1, 2)  # (rows, 9 * (features + 1), width)
        for each in range(3):
            lows = lows + highs.index_select(1, self.high[each])
        parts = lows.chunk(self.slots, dim=1)  # (rows, 84, width) each
        results: Tensor = parts[0]
        for part in parts[1:]:
            results = results + part
        return results


def _modules(series: Sequence[FittedKernels], features: int, *, left: int) -> nn.ModuleList:
    return nn.ModuleList(
        DilatedResults(fitted, (np.arange(KERNELS) + place) % 2 == 1, features=features, left=left)
        for place, fitted in enumerate(series)
    )


def _in_blocks(pooled: Sequence[Sequence[Tensor]]) -> Tensor:
    """The features of the first pooling at every dilation, then those of the second one, and so on."""
    return torch.cat([each for pooling in zip(*pooled, strict=True) for each in pooling], dim=1)


def _mean(total: Tensor, number: Tensor, otherwise: float) -> Tensor:
    """`total / number`, or another number where nothing was counted."""
    return torch.where(number > 0, (total / number.clamp(min=1).double()).float(), otherwise)


def _longest_stretch(is_below: Tensor, counted: Tensor, counts: Tensor) -> Tensor:
    """`[rows, 84, biases]`: the largest distance between steps below the bias; its ends count as well.

    A step belongs to the group of the last step below the bias, that one included. The size of a group is the distance
    to the next step below the bias; to the last step of the sequence it is one less.
    """
    group = is_below.to(torch.int64).cumsum(dim=3)
    sizes = torch.zeros(is_below.shape, device=is_below.device)
    sizes = functional.pad(sizes, (0, 1)).scatter_add(3, group, counted.to(torch.float32).expand(is_below.shape))
    last = is_below.to(torch.int64).sum(dim=3, keepdim=True)
    is_last = torch.arange(is_below.shape[3] + 1, device=is_below.device) == last
    return (sizes - is_last.to(torch.float32)).amax(dim=3)
