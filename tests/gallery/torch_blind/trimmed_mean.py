import torch
from torch import nn


class TrimmedMean(nn.Module):
    """A mean without the tenth of the values at each end, which noise may have made."""

    def __init__(self, n_in=4, hidden=8, n_out=3):
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        h = self.embed(x).sort(dim=1).values
        cut = x.shape[1] // 10
        return self.head(h[:, cut : x.shape[1] - cut].mean(dim=1))


def make():
    torch.manual_seed(502)
    return TrimmedMean()
