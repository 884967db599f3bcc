import torch
import torch.nn.functional as F
from torch import nn


class ValidConvs(nn.Module):
    """No padding anywhere: each layer is shorter than the one before."""

    def __init__(self, n_in=3, n_out=4):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, 8, 5)
        self.conv2 = nn.Conv1d(8, 8, 3, dilation=2)
        self.conv3 = nn.Conv1d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, n_out)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean(dim=2))


def make():
    torch.manual_seed(374)
    return ValidConvs()
