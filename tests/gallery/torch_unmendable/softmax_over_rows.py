import torch
from torch import nn


class WrongAxis(nn.Module):
    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.enc, self.score, self.fc = nn.Linear(n_in, d), nn.Linear(d, 1), nn.Linear(d, n_out)

    def forward(self, x):
        h = torch.tanh(self.enc(x))
        weights = torch.softmax(self.score(h), dim=0)
        return self.fc((weights * h).sum(1))


def make():
    torch.manual_seed(463)
    return WrongAxis()
