import torch
from torch import nn


class MedianPool(nn.Module):
    def __init__(self, n_in=5, hidden=8, n_out=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out.median(dim=1).values)


def make():
    torch.manual_seed(503)
    return MedianPool()
