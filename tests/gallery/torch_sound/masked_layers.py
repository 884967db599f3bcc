from typing import NamedTuple

import torch
from torch import nn


class Masked(NamedTuple):
    x: torch.Tensor
    mask: torch.Tensor


class MaskedConv(nn.Module):
    def __init__(self, i, o, k, d=1):
        super().__init__()
        self.conv = nn.Conv1d(i, o, k, padding=(k - 1) // 2 * d, dilation=d)

    def forward(self, z):
        return Masked(self.conv(z.x.masked_fill(~z.mask, 0.0)), z.mask)


class Apply(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, z):
        return z._replace(x=self.fn(z.x))


class Net(nn.Module):
    def __init__(self, n_in=3, c=12, n_out=4):
        super().__init__()
        self.body = nn.Sequential(
            MaskedConv(n_in, c, 5),
            Apply(nn.BatchNorm1d(c)),
            Apply(nn.GELU()),
            MaskedConv(c, c, 3, 2),
            Apply(nn.Dropout(0.1)),
            Apply(nn.GELU()),
        )
        self.head = nn.Linear(c, n_out)

    def forward(self, x, mask):
        z = self.body(Masked(x.transpose(1, 2), mask.unsqueeze(1)))
        return self.head(z.x.masked_fill(~z.mask, -torch.inf).max(-1)[0])


def make():
    torch.manual_seed(135)
    net = Net()
    net.body[1].fn.running_mean.normal_()
    return net
