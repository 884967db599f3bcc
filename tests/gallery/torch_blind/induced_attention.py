import torch
from torch import nn


class InducedAttention(nn.Module):
    """A set transformer's block: a few learned points look at all steps, and all steps look at them."""

    def __init__(self, n_in=4, d=12, points=5, heads=3, n_out=4):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.induced = nn.Parameter(torch.randn(1, points, d))
        self.seed = nn.Parameter(torch.randn(1, 1, d))
        self.read, self.write, self.pool = (nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(3))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h, b = self.inp(x), x.size(0)
        points = self.read(self.induced.expand(b, -1, -1), h, h, need_weights=False)[0]
        h = h + self.write(h, points, points, need_weights=False)[0]
        return self.fc(self.pool(self.seed.expand(b, -1, -1), h, h, need_weights=False)[0][:, 0])


def make():
    torch.manual_seed(427)
    return InducedAttention()
