import torch
from torch import nn


class TimeFirst(nn.Module):
    """As torch's recurrent layers want it by default: [time, batch, features]."""

    def __init__(self, n_in=5, hidden=10, n_out=4):
        super().__init__()
        self.rnn = nn.LSTM(n_in, hidden, num_layers=2)
        self.out = nn.Linear(hidden, n_out)

    def forward(self, x):
        outputs, _ = self.rnn(x)
        return self.out(outputs[-1])


def make():
    torch.manual_seed(339)
    return TimeFirst()
