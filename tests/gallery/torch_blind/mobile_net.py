import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, stride, expand=2):
        super().__init__()
        wide = n_in * expand
        self.skip = stride == 1 and n_in == n_out
        self.conv = nn.Sequential(
            nn.Conv1d(n_in, wide, 1, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU6(),
            nn.Conv1d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU6(),
            nn.Conv1d(wide, n_out, 1, bias=False),
            nn.BatchNorm1d(n_out),
        )

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNet1d(nn.Module):
    def __init__(self, n_in=6, n_out=4):
        super().__init__()
        self.stem = nn.Conv1d(n_in, 8, 3, stride=1, padding=1)
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.act = nn.Hardswish()
        self.fc = nn.Linear(12, n_out)

    def forward(self, x):
        x = self.act(self.blocks(self.stem(x.mT)))
        return self.fc(x.mean([-1]))


def make():
    torch.manual_seed(383)
    return with_statistics(MobileNet1d())
