"""The encoder that is served over HTTP: `lengthwise export benchmarks/gpu/encoder.py:Encoder`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FEATURES, _HIDDEN, _HEADS, _LAYERS = 12, 256, 8, 4


class Encoder(nn.Module):
    """Four transformer layers of 256, and the mean over the valid steps."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(_FEATURES, _HIDDEN)
        layer = nn.TransformerEncoderLayer(_HIDDEN, _HEADS, 2 * _HIDDEN, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(_HIDDEN, 9)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]` and `lengths [rows]`."""
        padding = torch.arange(x.size(1), device=x.device) >= lengths[:, None]
        hidden = self.encoder(self.project(x), src_key_padding_mask=padding).masked_fill(padding.unsqueeze(2), 0.0)
        logits: Tensor = self.head(hidden.sum(1) / lengths[:, None])
        return logits
