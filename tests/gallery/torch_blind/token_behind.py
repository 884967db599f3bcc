import torch
from torch import nn


class TokenBehind(nn.Module):
    """A learned token stands behind the last step, and is what the answer is read from."""

    def __init__(self, n_in=4, d=12, n_out=4):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.ask = nn.Parameter(torch.randn(1, 1, d))
        self.gru = nn.GRU(d, d, batch_first=True)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h = torch.cat([self.inp(x), self.ask.expand(x.size(0), -1, -1)], dim=1)
        return self.fc(self.gru(h)[0][:, -1])


def make():
    torch.manual_seed(417)
    return TokenBehind()
