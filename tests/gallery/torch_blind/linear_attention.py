import torch
import torch.nn.functional as F
from torch import nn


class LinearAttention(nn.Module):
    """Keys and values are summed over time once; every query reads the sums."""

    def __init__(self, n_in=5, d=8, n_out=4):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(n_in, d), nn.Linear(n_in, d), nn.Linear(n_in, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        kv = torch.einsum("btd,bte->bde", k, v)
        z = 1.0 / torch.einsum("btd,bd->bt", q, k.sum(dim=1))
        y = torch.einsum("btd,bde,bt->bte", q, kv, z)
        return self.fc(y.mean(dim=1))


def make():
    torch.manual_seed(400)
    return LinearAttention()
