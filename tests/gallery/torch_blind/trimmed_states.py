import torch
from torch import nn


class Trimmed(nn.Module):
    """The first and the last step are markers: their states do not count."""

    def __init__(self, n_in=5, h=6, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, h, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.fc(states[:, 1:-1].mean(dim=1))


def make():
    torch.manual_seed(428)
    return Trimmed()
