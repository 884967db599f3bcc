import torch
from torch import nn


class BranchOnWidth(nn.Module):
    """Long recordings are pooled otherwise: a branch of Python on the width of the batch."""

    def __init__(self, n_in=4, hidden=8, n_out=3):
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        if x.size(1) > 110:
            return self.head(h.amax(dim=1))
        return self.head(h.mean(dim=1))


def make():
    torch.manual_seed(520)
    return BranchOnWidth()
