import torch
from torch import nn


class ContextGate(nn.Module):
    """Every step is compared with the mean of all; one answer for each step."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.enc = nn.Linear(n_in, d)
        self.out = nn.Linear(2 * d, n_out)

    def forward(self, x):
        h = torch.relu(self.enc(x))
        mean = h.mean(dim=1, keepdim=True)
        return self.out(torch.cat([h - mean, mean.expand(-1, x.size(1), -1)], dim=-1))


def make():
    torch.manual_seed(401)
    return ContextGate()
