import torch
import torch.nn.functional as F
from torch import nn


class Downsampler(nn.Module):
    def __init__(self, n_in=4, d=12, classes=3):
        super().__init__()
        self.lin1 = nn.Linear(n_in, d)
        self.lin2 = nn.Linear(d, d)
        self.fc = nn.Linear(d, classes)

    def forward(self, x, lens):
        h = torch.tanh(self.lin1(x))
        h = h * (torch.arange(h.size(1)) < lens[:, None]).unsqueeze(-1)
        h = F.max_pool1d(h.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)  # leak
        lens = torch.div(lens + 1, 2, rounding_mode="floor")
        m = (torch.arange(h.size(1)) < lens[:, None]).unsqueeze(-1)
        h = torch.tanh(self.lin2(h)) * m
        return self.fc(h.sum(1) / lens[:, None])


def make():
    torch.manual_seed(41)
    return Downsampler()
