import torch
from torch import nn


class Forgotten(nn.Module):
    """[batch, time, features] given to an LSTM that wants the time first."""

    def __init__(self, n_in=5, hidden=10, n_out=4):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])


def make():
    torch.manual_seed(464)
    return Forgotten()
