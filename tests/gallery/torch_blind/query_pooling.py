import torch
from torch import nn


class QueryPooling(nn.Module):
    """Four learned queries look at all steps."""

    def __init__(self, n_in=6, d=12, n_queries=4, n_out=3):
        super().__init__()
        self.inp = nn.Sequential(nn.Linear(n_in, d), nn.ReLU())
        self.queries = nn.Parameter(torch.randn(1, n_queries, d))
        self.cross = nn.MultiheadAttention(d, 2, batch_first=True)
        self.fc = nn.Linear(n_queries * d, n_out)

    def forward(self, x):
        h = self.inp(x)
        pooled, _ = self.cross(self.queries.expand(x.size(0), -1, -1), h, h)
        return self.fc(pooled.flatten(1))


def make():
    torch.manual_seed(399)
    return QueryPooling()
