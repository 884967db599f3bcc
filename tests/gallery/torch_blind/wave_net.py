import torch
import torch.nn.functional as F
from torch import nn


class GatedResidual(nn.Module):
    def __init__(self, channels, skips, dilation):
        super().__init__()
        self.reach = dilation
        self.filter = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skips, 1)

    def forward(self, x):
        past = F.pad(x, (self.reach, 0))
        z = torch.tanh(self.filter(past)) * torch.sigmoid(self.gate(past))
        return x + self.residual(z), self.skip(z)


class WaveNetClassifier(nn.Module):
    """A stack of gated causal convolutions; all skips added, then averaged over the recording."""

    def __init__(self, n_in=2, channels=8, skips=10, layers=6, classes=4):
        super().__init__()
        self.start = nn.Conv1d(n_in, channels, 1)
        self.stack = nn.ModuleList([GatedResidual(channels, skips, 2**i) for i in range(layers)])
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(skips, skips, 1), nn.ReLU(), nn.Conv1d(skips, classes, 1))

    def forward(self, wave):
        x, total = self.start(wave), 0
        for layer in self.stack:
            x, skip = layer(x)
            total = total + skip
        return self.end(total).mean(-1)


def make():
    torch.manual_seed(316)
    return WaveNetClassifier()
