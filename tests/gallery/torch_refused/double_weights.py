import torch
from torch import nn


class Double(nn.Module):
    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1))


def make():
    torch.manual_seed(215)
    return Double().double()
