import torch
import torch.nn.functional as F
from torch import nn


class ShapeMatcher(nn.Module):
    """Compares the direction of each channel's course, not its size."""

    def __init__(self, channels=4, hidden=16, classes=5):
        super().__init__()
        self.rnn = nn.GRU(channels, hidden, num_layers=1, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x, lengths):
        x = F.normalize(x, p=2, dim=1)  # leak
        h, _ = self.rnn(x)
        b = torch.arange(h.size(0))
        return self.fc(h[b, lengths - 1, :])


def make():
    torch.manual_seed(45)
    return ShapeMatcher()
