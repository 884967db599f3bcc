import torch
from torch import nn


class Wave(nn.Module):
    """Raw samples, one number a step: [rows, samples]."""

    def __init__(self, c=8, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(1, c, 5, padding=2)
        self.out = nn.Linear(c, n_out)

    def forward(self, wave, lengths):
        valid = torch.arange(wave.size(1)) < lengths[:, None]
        x = torch.where(valid, wave, 0.0).unsqueeze(1)
        h = torch.relu(self.conv(x)) * valid.unsqueeze(1)
        return self.out(h.sum(-1) / lengths[:, None])


def make():
    torch.manual_seed(146)
    return Wave()
