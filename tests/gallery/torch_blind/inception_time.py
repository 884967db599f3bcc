import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class InceptionModule(nn.Module):
    def __init__(self, ni, nf, ks=(39, 19, 9), bottleneck=4):
        super().__init__()
        self.bottleneck = nn.Conv1d(ni, bottleneck, 1, bias=False) if ni > 1 else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv1d(bottleneck if ni > 1 else 1, nf, k, padding=k // 2, bias=False) for k in ks
        )
        self.maxconvpool = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(ni, nf, 1, bias=False))
        self.bn = nn.BatchNorm1d(nf * 4)
        self.act = nn.ReLU()

    def forward(self, x):
        squeezed = self.bottleneck(x)
        branches = [conv(squeezed) for conv in self.convs] + [self.maxconvpool(x)]
        return self.act(self.bn(torch.cat(branches, dim=1)))


class InceptionBlock(nn.Module):
    def __init__(self, ni, nf=4, depth=6):
        super().__init__()
        self.inception = nn.ModuleList(InceptionModule(ni if d == 0 else nf * 4, nf) for d in range(depth))
        self.shortcut = nn.ModuleList(
            nn.Sequential(nn.Conv1d(n, nf * 4, 1, bias=False), nn.BatchNorm1d(nf * 4)) for n in (ni, nf * 4)
        )
        self.act = nn.ReLU()

    def forward(self, x):
        res = x
        for d, module in enumerate(self.inception):
            x = module(x)
            if d % 3 == 2:
                x = res = self.act(x + self.shortcut[d // 3](res))
        return x


class InceptionTime(nn.Module):
    def __init__(self, c_in=3, c_out=4, nf=4):
        super().__init__()
        self.inceptionblock = InceptionBlock(c_in, nf)
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(nf * 4, c_out)

    def forward(self, x):
        x = self.gap(self.inceptionblock(x)).squeeze(-1)
        return self.fc(x)


def make():
    torch.manual_seed(301)
    return with_statistics(InceptionTime())
