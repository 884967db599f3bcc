import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class ConvReluBN(nn.Sequential):
    def __init__(self, n_in, n_out, k=1, dilation=1):
        conv = nn.Conv1d(n_in, n_out, k, dilation=dilation, padding=dilation * (k - 1) // 2)
        super().__init__(conv, nn.ReLU(), nn.BatchNorm1d(n_out))


class Res2Conv(nn.Module):
    def __init__(self, channels, dilation, scale=4):
        super().__init__()
        self.width = channels // scale
        self.convs = nn.ModuleList([ConvReluBN(self.width, self.width, 3, dilation) for _ in range(scale - 1)])

    def forward(self, x):
        head, *groups = torch.split(x, self.width, dim=1)
        out, last = [head], 0
        for conv, group in zip(self.convs, groups, strict=True):
            last = conv(group + last)
            out.append(last)
        return torch.cat(out, dim=1)


class SEBlock(nn.Module):
    def __init__(self, channels, bottleneck=4):
        super().__init__()
        self.down, self.up = nn.Conv1d(channels, bottleneck, 1), nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x):
        s = x.mean(dim=2, keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(s))))


class SERes2Block(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.net = nn.Sequential(
            ConvReluBN(channels, channels),
            Res2Conv(channels, dilation),
            ConvReluBN(channels, channels),
            SEBlock(channels),
        )

    def forward(self, x):
        return x + self.net(x)


class AttentiveStatistics(nn.Module):
    def __init__(self, channels, hidden=8):
        super().__init__()
        self.tdnn = ConvReluBN(channels * 3, hidden)
        self.conv = nn.Conv1d(hidden, channels, 1)

    def forward(self, x):
        mean = x.mean(2, keepdim=True)
        std = x.var(2, keepdim=True, unbiased=False).clamp(min=1e-6).sqrt()
        context = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
        w = torch.softmax(self.conv(torch.tanh(self.tdnn(context))), dim=2)
        mu = (w * x).sum(2)
        sigma = ((w * x**2).sum(2) - mu**2).clamp(min=1e-6).sqrt()
        return torch.cat([mu, sigma], dim=1)


class EcapaTDNN(nn.Module):
    def __init__(self, n_mels=6, channels=8, speakers=5):
        super().__init__()
        self.layer1 = ConvReluBN(n_mels, channels, 5)
        self.layers = nn.ModuleList([SERes2Block(channels, d) for d in (2, 3, 4)])
        self.mfa = ConvReluBN(3 * channels, 2 * channels)
        self.asp = AttentiveStatistics(2 * channels)
        self.bn = nn.BatchNorm1d(4 * channels)
        self.fc = nn.Linear(4 * channels, speakers)

    def forward(self, x):
        x = self.layer1(x.transpose(1, 2))
        outs = []
        for layer in self.layers:
            x = layer(x)
            outs.append(x)
        return self.fc(self.bn(self.asp(self.mfa(torch.cat(outs, dim=1)))))


def make():
    torch.manual_seed(315)
    return with_statistics(EcapaTDNN())
