import torch
from torch import nn


class OneStep(nn.Module):
    """Reads past the end of every row that has more than one step."""

    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lengths):
        h = torch.tanh(self.step(x))
        return self.out(h[torch.arange(x.size(0)), lengths * (x.size(1) - 1)])


def make():
    torch.manual_seed(209)
    return OneStep()
