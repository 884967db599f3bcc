import torch
from torch import nn


class FNet(nn.Module):
    def __init__(self, n_in=6, d=10, n_out=4):
        super().__init__()
        self.inp, self.norm, self.fc = nn.Linear(n_in, d), nn.LayerNorm(d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.inp(x)
        mixed = torch.fft.fft(h, dim=1).real
        return self.fc(self.norm(h + mixed).mean(1))


def make():
    torch.manual_seed(455)
    return FNet()
