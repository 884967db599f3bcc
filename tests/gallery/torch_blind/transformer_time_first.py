import torch
from torch import nn


class TimeFirstTransformer(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.layer = nn.TransformerEncoderLayer(d, 3, 24, activation="gelu")
        self.out = nn.Linear(d, n_out)

    def forward(self, src):
        return self.out(self.layer(self.inp(src)).mean(0))


def make():
    torch.manual_seed(387)
    return TimeFirstTransformer()
