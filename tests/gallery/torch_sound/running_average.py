import torch
import torch.nn.functional as F
from torch import nn


class RunningAverage(nn.Module):
    """Differences to the step before, then the average so far, read where the sequence ends."""

    def __init__(self, n_in=3, d=16, n_out=4):
        super().__init__()
        self.mix = nn.Linear(2 * n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lengths):
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        h = torch.tanh(self.mix(torch.cat([x, x - before], dim=-1)))
        average = h.cumsum(dim=1) / torch.arange(1, x.size(1) + 1).view(1, -1, 1)
        return self.out(torch.take_along_dim(average, (lengths - 1).view(-1, 1, 1), dim=1).squeeze(1))


def make():
    torch.manual_seed(138)
    return RunningAverage()
