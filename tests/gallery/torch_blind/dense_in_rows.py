import torch
from torch import nn


class TimeDistributed(nn.Module):
    """Folds time into the batch, applies a layer of vectors, unfolds."""

    def __init__(self, n_in=6, d=12, n_out=4):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, f = x.size()
        z = self.layer(x.contiguous().view(b * t, f))
        return self.fc(z.view(b, t, -1).mean(1))


def make():
    torch.manual_seed(362)
    return TimeDistributed()
