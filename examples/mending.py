"""Models as most are written: without lengths. The commands of docs/mending.md give them lengths.

lengthwise check examples/mending.py:inception --features 12 --suggest
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS, HIDDEN, CLASSES = 12, 16, 9


class InceptionBlock(nn.Module):
    """Convolutions of three kernels and a pooling beside each other, as in InceptionTime."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(channels, filters, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(filters, filters, kernel, padding=kernel // 2, bias=False) for kernel in (19, 9, 5)
        )
        self.pool = nn.MaxPool1d(3, stride=1, padding=1)
        self.after_pool = nn.Conv1d(channels, filters, 1, bias=False)
        self.norm = nn.BatchNorm1d(4 * filters)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, 4 * filters, width]` of `x [rows, channels, width]`."""
        narrow = self.bottleneck(x)
        parts = [conv(narrow) for conv in self.convs]
        return torch.relu(self.norm(torch.cat([*parts, self.after_pool(self.pool(x))], dim=1)))


class Inception(nn.Module):
    """Three such blocks with a residual connection, and a mean over the width."""

    def __init__(self, channels: int = CHANNELS, filters: int = HIDDEN, classes: int = CLASSES) -> None:
        super().__init__()
        wide = 4 * filters
        self.blocks = nn.ModuleList(InceptionBlock(size, filters) for size in (channels, wide, wide))
        self.shortcut = nn.Sequential(nn.Conv1d(channels, wide, 1), nn.BatchNorm1d(wide))
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, channels]`."""
        steps = x.transpose(1, 2)
        h = steps
        for block in self.blocks:
            h = block(h)
        h = torch.relu(h + self.shortcut(steps))
        return self.head(h.mean(dim=2))


class LastState(nn.Module):
    """A bidirectional LSTM, of which the output at the last step of the batch is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, channels]`."""
        return self.head(self.lstm(x)[0][:, -1])


class FixedWidth(nn.Module):
    """A dense layer over all steps at once: it has weights for 32 steps, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, HIDDEN, 3, padding=1)
        self.head = nn.Linear(32 * HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, 32, channels]`."""
        return self.head(torch.relu(self.conv(x.transpose(1, 2))).flatten(1))


def inception() -> nn.Module:
    """Padding reaches the convolutions, their norms and the mean."""
    torch.manual_seed(0)
    return Inception()


def last_state() -> nn.Module:
    """The last step of the batch is padding, and the reverse direction begins there."""
    torch.manual_seed(0)
    return LastState()


def fixed_width() -> nn.Module:
    """No mask can help: this model means one width only."""
    torch.manual_seed(0)
    return FixedWidth()
