import torch
from torch import nn


class SoftmaxOverAll(nn.Module):
    """One softmax over time and channels together."""

    def __init__(self, n_in=5, d=8, n_out=3):
        super().__init__()
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.inp(x)
        w = h.flatten(1).softmax(dim=-1).view_as(h)
        return self.fc((w * h).sum(1))


def make():
    torch.manual_seed(425)
    return SoftmaxOverAll()
