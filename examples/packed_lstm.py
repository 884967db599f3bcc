"""A two-layer BiLSTM with packing, as many write it: `lengthwise check examples/packed_lstm.py:make`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class BiLstm(nn.Module):
    """Two layers in both directions, with packing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(12, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 9)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]`."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        last_states = self.lstm(packed)[1][0]
        logits: Tensor = self.head(torch.cat([last_states[-2], last_states[-1]], dim=1))
        return logits


def make() -> nn.Module:
    """The module, with the same weights each time."""
    return BiLstm()
