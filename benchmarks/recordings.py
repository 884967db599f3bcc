"""Two recordings that are compared, as a torch module: `lengthwise export benchmarks/recordings.py:compared`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 12
_UNITS = 128


class Compared(nn.Module):
    """One bidirectional LSTM for both recordings, the mean of each over its valid steps, and their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, _UNITS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6 * _UNITS, 9)

    def forward(self, first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor) -> Tensor:
        """`[rows, classes]` of recordings `[rows, width, features]`, each with a width of its own."""
        one, other = self.mean(first, first_lengths), self.mean(second, second_lengths)
        logits: Tensor = self.head(torch.cat([one, other, (one - other).abs()], dim=1))
        return logits

    def mean(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """The mean of the states at the valid steps of one recording, `[rows, 2 * units]`."""
        packed = nn.utils.rnn.pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.encoder(packed)[0], True, 0.0, steps.size(1))
        return states.sum(1) / lengths[:, None]


def compared() -> Compared:
    """For one core."""
    torch.manual_seed(0)
    return Compared()
