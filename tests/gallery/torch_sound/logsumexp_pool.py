import torch
from torch import nn


class SoftMaxPool(nn.Module):
    def __init__(self, n_in=7, d=16, n_out=6):
        super().__init__()
        self.segment = nn.Sequential(nn.Linear(n_in, d), nn.Tanh(), nn.Linear(d, n_out))

    def forward(self, x, lengths):
        scores = self.segment(x)
        outside = torch.arange(x.size(1)).view(1, -1, 1) >= lengths.view(-1, 1, 1)
        scores = scores.masked_fill(outside, -torch.inf)
        return torch.logsumexp(scores, dim=1) - torch.log(lengths.float()).unsqueeze(1)


def make():
    torch.manual_seed(136)
    return SoftMaxPool()
