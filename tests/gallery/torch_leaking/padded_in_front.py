import torch
import torch.nn.functional as F
from torch import nn


class Warm(nn.Module):
    """Puts fourteen steps of zeros in front, for the recurrent layer to warm up."""

    def __init__(self, n_in=5, hidden=7, n_out=3):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, x, lengths):
        h, _ = self.gru(F.pad(x, (0, 0, 14, 0)))  # leak
        return self.out(h[torch.arange(x.size(0)), lengths + 13])


def make():
    torch.manual_seed(65)
    return Warm()
