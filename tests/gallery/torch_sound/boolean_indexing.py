import torch
from torch import nn


class SegmentMean(nn.Module):
    """Only valid steps are computed; they are put together by row afterwards."""

    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.Linear(d, d))
        self.out = nn.Linear(d, n_out)

    def forward(self, x, mask):
        valid = self.net(x[mask])
        rows = mask.nonzero()[:, 0]
        total = valid.new_zeros(x.size(0), valid.size(1)).index_add(0, rows, valid)
        return self.out(total / mask.sum(1, keepdim=True))


def make():
    torch.manual_seed(131)
    return SegmentMean()
