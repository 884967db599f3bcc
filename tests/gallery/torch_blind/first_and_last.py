import torch
from torch import nn


class Ends(nn.Module):
    """The backward state has read everything at the first step, the forward state at the last one."""

    def __init__(self, n_in=5, h=8, n_out=3):
        super().__init__()
        self.h = h
        self.lstm = nn.LSTM(n_in, h, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * h)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x):
        y = self.lstm(x)[0]
        ends = torch.cat([y[:, -1, : self.h], y[:, 0, self.h :]], dim=-1)
        return self.fc(self.norm(ends))


def make():
    torch.manual_seed(341)
    return Ends()
