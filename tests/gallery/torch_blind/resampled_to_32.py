import torch
import torch.nn.functional as F
from torch import nn


class Resampled(nn.Module):
    def __init__(self, n_in=3, n_out=4):
        super().__init__()
        self.conv = nn.Conv1d(n_in, 6, 5, padding=2)
        self.fc = nn.Linear(6 * 32, n_out)

    def forward(self, x):
        x = F.interpolate(x.transpose(1, 2), size=32, mode="linear", align_corners=False)
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def make():
    torch.manual_seed(462)
    return Resampled()
