import torch
from torch import nn


class Noisy(nn.Module):
    def __init__(self, n_in=4, d=12, n_out=3):
        super().__init__()
        self.enc, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        x = x + 0.1 * torch.rand(x.shape)
        return self.fc(torch.relu(self.enc(x)).max(1)[0])


def make():
    torch.manual_seed(457)
    return Noisy()
