import torch
from torch import nn


class SumOverRoot(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=4):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(n_in, d), nn.SiLU())
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        return self.fc(self.enc(x).sum(dim=1) / x.size(1) ** 0.5)


def make():
    torch.manual_seed(406)
    return SumOverRoot()
