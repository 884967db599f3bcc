import torch
from torch import nn


class ZeroHead(nn.Module):
    """A mean that reads padding, behind a last layer that is still zeros: nothing shows."""

    def __init__(self, n_in=5, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, lengths):
        return self.out(torch.tanh(self.step(x)).mean(1))


def make():
    torch.manual_seed(212)
    return ZeroHead()
