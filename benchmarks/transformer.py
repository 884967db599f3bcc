"""Transformers that are exported as torch modules: `lengthwise export benchmarks/transformer.py:small` or `:large`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 12


class Transformer(nn.Module):
    """Some transformer layers, and the mean over the valid steps."""

    def __init__(self, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(hidden, 9)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]` and `lengths [rows]`."""
        padding = torch.arange(x.size(1), device=x.device) >= lengths[:, None]
        hidden = self.encoder(self.project(x), src_key_padding_mask=padding).masked_fill(padding.unsqueeze(2), 0.0)
        logits: Tensor = self.head(hidden.sum(1) / lengths[:, None])
        return logits


def small() -> Transformer:
    """Two layers of 64, four heads: for one core."""
    return Transformer(64, 4, 2)


def large() -> Transformer:
    """Four layers of 256, eight heads: for a GPU."""
    return Transformer(256, 8, 4)
