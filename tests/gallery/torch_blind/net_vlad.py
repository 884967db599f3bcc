import torch
import torch.nn.functional as F
from torch import nn


class NetVLAD(nn.Module):
    """How far the steps lie from each of a few learned centres, added up."""

    def __init__(self, n_in=5, d=8, clusters=4, n_out=5):
        super().__init__()
        self.enc, self.assign = nn.Linear(n_in, d), nn.Linear(d, clusters)
        self.centroids = nn.Parameter(torch.randn(clusters, d))
        self.fc = nn.Linear(clusters * d, n_out)

    def forward(self, x):
        h = torch.tanh(self.enc(x))
        soft = self.assign(h).softmax(dim=-1)
        vlad = torch.einsum("btk,btd->bkd", soft, h) - soft.sum(dim=1).unsqueeze(-1) * self.centroids
        return self.fc(F.normalize(F.normalize(vlad, dim=2).flatten(1), dim=1))


def make():
    torch.manual_seed(414)
    return NetVLAD()
