import torch
from torch import nn


class SmoothMax(nn.Module):
    def __init__(self, n_in=5, d=10, n_out=4, sharpness=3.0):
        super().__init__()
        self.r = sharpness
        self.step = nn.Sequential(nn.Linear(n_in, d), nn.Tanh(), nn.Linear(d, n_out))

    def forward(self, x):
        logits = self.step(x)
        return torch.logsumexp(self.r * logits, dim=1) / self.r


def make():
    torch.manual_seed(354)
    return SmoothMax()
