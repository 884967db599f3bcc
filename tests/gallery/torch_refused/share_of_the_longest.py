import torch
from torch import nn


class Relative(nn.Module):
    """Lengths as a share of the longest: with steps it runs at a width of 1 alone."""

    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lens):
        n = (lens * x.size(1)).round().long()
        h = torch.tanh(self.step(x)).cumsum(1)
        return self.out(h[torch.arange(x.size(0)), n - 1] / n[:, None])


def make():
    torch.manual_seed(208)
    return Relative()
