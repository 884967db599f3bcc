import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


def block(ni, nf, k, act):
    return nn.Sequential(nn.Conv1d(ni, nf, k, padding="same"), nn.BatchNorm1d(nf), act)


class ResidualStart(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        self.block1, self.block2 = block(ni, nf, 7, nn.ReLU()), block(nf, nf, 5, nn.ReLU())
        self.block3 = block(nf, nf, 3, nn.Identity())
        self.shortcut = block(ni, nf, 1, nn.Identity())

    def forward(self, x):
        return (self.block3(self.block2(self.block1(x))) + self.shortcut(x)).relu()


class ResCNN(nn.Module):
    def __init__(self, c_in=5, c_out=3, nf=8):
        super().__init__()
        self.block = ResidualStart(c_in, nf)
        self.block2 = block(nf, nf * 2, 3, nn.LeakyReLU(0.2))
        self.block3 = block(nf * 2, nf * 2, 3, nn.PReLU())
        self.block4 = block(nf * 2, nf, 3, nn.ELU(0.3))
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.lin = nn.Linear(nf, c_out)

    def forward(self, x):
        x = self.block4(self.block3(self.block2(self.block(x))))
        return self.lin(self.flatten(self.gap(x)))


def make():
    torch.manual_seed(309)
    return with_statistics(ResCNN())
