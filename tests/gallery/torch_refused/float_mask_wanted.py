import torch
from torch import nn


class FloatMask(nn.Module):
    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        away = (1.0 - mask) * -1e4
        return self.out((x + away.unsqueeze(-1)).amax(1))


def make():
    torch.manual_seed(216)
    return FloatMask()
