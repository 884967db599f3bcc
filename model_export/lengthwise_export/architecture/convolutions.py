"""Convolutional blocks: parallel kernels, a bottleneck, a branch with a maximum, and residual connections.

With `kernel = [9, 19, 39]`, `pool = 3` and `residual = 3` in every third block, this is InceptionTime
(https://arxiv.org/abs/1909.04939); with one kernel in a block, a residual network
(https://arxiv.org/abs/1611.06455). Every block masks what it reads, so no step sees padding at any depth.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lengthwise_export.architecture import layers
from lengthwise_export.architecture.spec import ConvSpec

NORMS = {"batch": layers.MaskedBatchNorm, "layer": layers.MaskedLayerNorm}


class ConvBlock(nn.Module):
    """Convolution, norm, ReLU, dropout; `earlier` features of a residual connection are added before the ReLU."""

    def __init__(self, features: int, spec: ConvSpec, *, dropout: float, earlier: int = 0) -> None:
        super().__init__()
        self.convolution = (
            ParallelBranches(features, spec)
            if spec.branches > 1 or spec.bottleneck
            else layers.MaskedConv(features, spec.channels, spec.kernels[0], spec.dilation)
        )
        self.norm = NORMS[spec.norm](spec.channels) if spec.norm != "none" else None
        self.shortcut = Shortcut(earlier, spec) if earlier else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, mask: Tensor, earlier: Tensor | None = None) -> Tensor:
        """`[rows, width, channels]`, zeros at padding (ReLU and dropout keep zeros)."""
        steps = self.convolution(steps, mask)
        if self.norm is not None:
            steps = self.norm(steps, mask)
        if self.shortcut is not None and earlier is not None:
            steps = steps + self.shortcut(earlier, mask)
        return cast("Tensor", self.dropout(functional.relu(steps)))


class Shortcut(nn.Module):
    """A residual connection: a product where the number of features differs, and the norm of the block."""

    def __init__(self, features: int, spec: ConvSpec) -> None:
        super().__init__()
        self.project = nn.Linear(features, spec.channels, bias=False) if features != spec.channels else None
        self.norm = NORMS[spec.norm](spec.channels) if spec.norm != "none" else None

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding."""
        if self.project is not None:
            steps = self.project(steps)
        return steps if self.norm is None else self.norm(steps, mask)


class ParallelBranches(nn.Module):
    """Convolutions of several kernels side by side, over fewer features (`bottleneck`), and maybe a maximum."""

    def __init__(self, features: int, spec: ConvSpec) -> None:
        super().__init__()
        narrow = bool(spec.bottleneck) and spec.bottleneck < features
        self.bottleneck = nn.Linear(features, spec.bottleneck, bias=False) if narrow else None
        width = spec.channels // spec.branches
        read = spec.bottleneck if narrow else features
        self.kernels = nn.ModuleList(layers.MaskedConv(read, width, kernel, spec.dilation) for kernel in spec.kernels)
        self.pool = spec.pool
        self.of_pool = nn.Linear(features, width) if spec.pool else None

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding."""
        narrow = steps if self.bottleneck is None else self.bottleneck(steps)
        branches = [convolution(narrow, mask) for convolution in self.kernels]
        if self.of_pool is not None:
            branches.append(layers.masked(self.of_pool(sliding_maximum(steps, mask, self.pool)), mask))
        return torch.cat(branches, dim=2)


def sliding_maximum(steps: Tensor, mask: Tensor, size: int) -> Tensor:
    """`[rows, width, features]`: at each valid step the maximum over the valid ones of `size` steps around it."""
    width = steps.shape[1]
    before = (size - 1) // 2
    around = functional.pad(
        torch.where(mask.unsqueeze(2), steps, layers.LOWEST), (0, 0, before, size - 1 - before), value=layers.LOWEST
    )
    largest = around[:, :width]
    for place in range(1, size):
        largest = torch.maximum(largest, around[:, place:][:, :width])
    return layers.masked(largest, mask)
