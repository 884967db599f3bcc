import torch
from torch import nn


class Branching(nn.Module):
    """Goes one way or the other by the loudest value in the batch."""

    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.loud, self.quiet, self.fc = nn.Linear(n_in, d), nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.loud(x) if x.abs().max() > 2.5 else self.quiet(x)
        return self.fc(torch.relu(h).mean(1))


def make():
    torch.manual_seed(467)
    return Branching()
