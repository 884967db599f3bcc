import torch
from torch import nn


class Countdown(nn.Module):
    """Embeds how many steps are left."""

    def __init__(self, n_in=5, d=12, table=256, n_out=4):
        super().__init__()
        self.inp, self.left = nn.Linear(n_in, d), nn.Embedding(table, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        t = x.shape[1]
        left = t - 1 - torch.arange(t, device=x.device)
        h = torch.relu(self.inp(x) + self.left(left))
        return self.fc(h.mean(dim=1))


def make():
    torch.manual_seed(393)
    return Countdown()
