import torch
import torch.nn.functional as F
from torch import nn


class Cropped(nn.Module):
    """Cuts two steps off the end by a padding below zero."""

    def __init__(self, n_in=4, h=8, n_out=3):
        super().__init__()
        self.gru = nn.GRU(n_in, h, batch_first=True)
        self.fc = nn.Linear(h, n_out)

    def forward(self, x):
        y = self.gru(x)[0].transpose(1, 2)
        return self.fc(F.pad(y, (0, -2)).mean(dim=2))


def make():
    torch.manual_seed(429)
    return Cropped()
