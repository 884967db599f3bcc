import torch
from torch import nn


class RangePool(nn.Module):
    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.f = nn.Linear(n_in, d)
        self.fc = nn.Linear(3 * d, n_out)

    def forward(self, x):
        h = self.f(x)
        low, high = h.amin(dim=1), h.amax(dim=1)
        return self.fc(torch.cat([low, high, high - low], dim=1))


def make():
    torch.manual_seed(353)
    return RangePool()
