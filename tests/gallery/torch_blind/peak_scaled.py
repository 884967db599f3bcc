import torch
from torch import nn


class PeakScaled(nn.Module):
    """Divides each recording by its own peak."""

    def __init__(self, n_in=3, c=8, n_out=4):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, 5, padding=2)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = x + 0.1
        x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)
        h = torch.relu(self.conv(x.transpose(1, 2)))
        return self.fc(h.mean(-1))


def make():
    torch.manual_seed(360)
    return PeakScaled()
