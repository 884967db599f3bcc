import torch
from torch import nn


class RecentWindow(nn.Module):
    """Only the last four steps count; shorter ones raise in the linear layer."""

    def __init__(self, n_in=5, recent=4, n_out=3):
        super().__init__()
        self.recent = recent
        self.mlp = nn.Sequential(nn.Linear(n_in * recent, 16), nn.ReLU(), nn.Linear(16, n_out))

    def forward(self, x):
        return self.mlp(x[:, -self.recent :].flatten(1))


def make():
    torch.manual_seed(355)
    return RecentWindow()
