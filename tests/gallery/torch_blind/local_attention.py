import torch
from torch import nn


class LocalAttention(nn.Module):
    """Each step looks at three neighbours on either side."""

    def __init__(self, n_in=5, d=12, reach=3, n_out=3):
        super().__init__()
        self.reach = reach
        self.inp, self.q, self.k = nn.Linear(n_in, d), nn.Linear(d, d), nn.Linear(d, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h = self.inp(x)
        i = torch.arange(x.size(1))
        far = (i[:, None] - i[None, :]).abs() > self.reach
        scores = (self.q(h) @ self.k(h).mT / 12**0.5).masked_fill(far, float("-inf"))
        return self.fc((scores.softmax(dim=-1) @ h).amax(dim=1))


def make():
    torch.manual_seed(422)
    return LocalAttention()
