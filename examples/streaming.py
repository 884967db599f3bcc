"""A model that streams: it reads forward only. The commands of docs/streaming-export.md publish it.

lengthwise export examples/streaming.py:forward_lstm --features 12 --streaming --out models/pumps
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, HIDDEN, CLASSES = 12, 16, 9


class ForwardLSTM(nn.Module):
    """An LSTM that reads forward, and attention pooling over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.score = nn.Linear(HIDDEN, 1)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]`."""
        hidden, _ = self.rnn(x)  # (rows, width, hidden)
        valid = torch.arange(x.shape[1]) < lengths[:, None]  # (rows, width)
        weights = self.score(hidden).squeeze(-1).masked_fill(~valid, float("-inf")).softmax(1)
        logits: Tensor = self.head((weights.unsqueeze(-1) * hidden).sum(1))
        return logits


def forward_lstm() -> nn.Module:
    """The model, with weights of chance."""
    torch.manual_seed(0)
    return ForwardLSTM().eval()
