import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class SeparableConv1d(nn.Module):
    def __init__(self, ni, nf, ks):
        super().__init__()
        self.depthwise = nn.Conv1d(ni, ni, ks, padding=ks // 2, groups=ni, bias=False)
        self.pointwise = nn.Conv1d(ni, nf, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class XceptionModule(nn.Module):
    def __init__(self, ni, nf, kss=(39, 19, 9)):
        super().__init__()
        self.bottleneck = nn.Conv1d(ni, nf, 1, bias=False)
        self.conv_layers = nn.ModuleList([SeparableConv1d(nf, nf, ks) for ks in kss])
        self.mp_conv = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(ni, nf, 1, bias=False))

    def forward(self, x):
        z = self.bottleneck(x)
        return torch.concat([layer(z) for layer in self.conv_layers] + [self.mp_conv(x)], 1)


class XceptionBlock(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        sizes = [ni, 4 * nf, 8 * nf, 16 * nf]
        self.xception = nn.ModuleList([XceptionModule(sizes[i], sizes[i + 1] // 4) for i in range(3)])
        self.shortcut = nn.Sequential(nn.Conv1d(ni, sizes[3], 1), nn.BatchNorm1d(sizes[3]))
        self.act = nn.ReLU()

    def forward(self, x):
        out = x
        for module in self.xception:
            out = module(out)
        return self.act(out + self.shortcut(x))


class XceptionTime(nn.Module):
    def __init__(self, c_in=4, c_out=6, nf=2):
        super().__init__()
        self.block = XceptionBlock(c_in, nf)
        self.head = nn.Sequential(
            nn.Conv1d(16 * nf, 8 * nf, 1),
            nn.BatchNorm1d(8 * nf),
            nn.ReLU(),
            nn.Conv1d(8 * nf, c_out, 1),
            nn.BatchNorm1d(c_out),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
        )

    def forward(self, x):
        return self.head(self.block(x.transpose(2, 1))).squeeze(-1)


def make():
    torch.manual_seed(307)
    return with_statistics(XceptionTime())
