import torch
from torch import nn


class WithDuration(nn.Module):
    """How long the recording is is one more number for the last layer."""

    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, d, batch_first=True)
        self.fc = nn.Linear(d + 1, n_out)

    def forward(self, x):
        b, t, _ = x.shape
        duration = torch.full((b, 1), 1.0) * t / 50.0
        return self.fc(torch.cat([self.lstm(x)[0][:, 0], duration], dim=1))


def make():
    torch.manual_seed(405)
    return WithDuration()
