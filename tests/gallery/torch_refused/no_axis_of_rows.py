import torch
from torch import nn


class WholeBatch(nn.Module):
    """One answer for the whole batch."""

    def __init__(self, n_in=5, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum((0, 1), keepdim=True)[0])


def make():
    torch.manual_seed(213)
    return WholeBatch()
