import torch
from torch import nn


class Centred(nn.Module):
    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.enc, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        z = torch.tanh(self.enc(x)).mean(dim=1)
        return self.fc(z - z.mean(dim=0, keepdim=True))


def make():
    torch.manual_seed(451)
    return Centred()
