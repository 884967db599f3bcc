import math

import torch
from torch import nn


class CosineBasis(nn.Module):
    """The first coefficients of a cosine transform along time."""

    def __init__(self, n_in=4, d=6, keep=5, n_out=4):
        super().__init__()
        self.keep = keep
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(keep * d, n_out)

    def forward(self, x):
        t = x.size(1)
        phase = math.pi * (2 * torch.arange(t) + 1) / (2 * t)
        basis = torch.cos(torch.arange(self.keep)[:, None] * phase[None, :])
        return self.fc((basis @ self.inp(x) / t).flatten(1))


def make():
    torch.manual_seed(419)
    return CosineBasis()
