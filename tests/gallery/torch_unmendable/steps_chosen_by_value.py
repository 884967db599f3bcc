import torch
from torch import nn


class Salient(nn.Module):
    """Keeps the steps that score above zero, of all rows in one list, and adds them up by row."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.score, self.enc, self.fc = nn.Linear(n_in, 1), nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        keep = self.score(x).squeeze(-1) > 0
        rows = keep.nonzero()[:, 0]
        chosen = torch.relu(self.enc(x[keep]))
        total = torch.zeros(x.size(0), chosen.size(1)).index_add(0, rows, chosen)
        return self.fc(total)


def make():
    torch.manual_seed(459)
    return Salient()
