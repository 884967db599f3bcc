import torch
from torch import nn


class EightBins(nn.Module):
    def __init__(self, n_in=4, c=6, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, 5, padding=2)
        self.pool = nn.AdaptiveAvgPool1d(8)
        self.fc = nn.Linear(8 * c, n_out)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x.transpose(1, 2)))).flatten(1))


def make():
    torch.manual_seed(458)
    return EightBins()
