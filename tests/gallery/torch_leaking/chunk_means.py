import torch
import torch.nn.functional as F
from torch import nn


class ChunkMeans(nn.Module):
    """Means over chunks of ten steps: the last one holds padding too."""

    def __init__(self, n_in=4, d=8, n_out=2):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lengths):
        h = torch.tanh(self.step(x))
        h = F.pad(h, (0, 0, 0, -h.size(1) % 10)).unflatten(1, (-1, 10))
        h = h.mean(2)  # leak
        chunks = (lengths + 9) // 10
        valid = torch.arange(h.size(1)) < chunks[:, None]
        return self.out(h.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / chunks[:, None])


def make():
    torch.manual_seed(63)
    return ChunkMeans()
