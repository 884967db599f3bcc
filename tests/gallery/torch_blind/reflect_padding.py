import torch
import torch.nn.functional as F
from torch import nn


class Mirrored(nn.Module):
    def __init__(self, n_in=2, c=8, n_out=4):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, 7)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = F.pad(x.transpose(1, 2), (3, 3), mode="reflect")
        return self.fc(torch.tanh(self.conv(x)).max(dim=2).values)


def make():
    torch.manual_seed(377)
    return Mirrored()
