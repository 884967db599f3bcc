import torch
import torch.nn.functional as F
from torch import nn


class Stretched(nn.Module):
    """Sixteen learned positions, drawn out to whatever width there is."""

    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)
        self.position = nn.Parameter(torch.randn(1, d, 16))

    def forward(self, x):
        drawn = F.interpolate(self.position, size=x.size(1), mode="linear", align_corners=False)
        return self.fc(torch.relu(self.inp(x) + drawn.transpose(1, 2)).mean(1))


def make():
    torch.manual_seed(454)
    return Stretched()
