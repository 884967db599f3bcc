import torch
from torch import nn


class Progress(nn.Module):
    """Appends how far into the recording each step lies, up to 1."""

    def __init__(self, n_in=4, d=12, n_out=3):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in + 1, d), nn.Tanh(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, _ = x.shape
        share = torch.arange(1, t + 1, dtype=x.dtype) / t
        share = share.view(1, t, 1).expand(b, t, 1)
        return self.fc(self.mlp(torch.cat([x, share], dim=2)).max(dim=1)[0])


def make():
    torch.manual_seed(394)
    return Progress()
