import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        scale = self.fc(self.gap(x).squeeze(-1)).unsqueeze(-1)
        return x * scale.expand_as(x)


class ConvBlock(nn.Sequential):
    def __init__(self, ni, nf, k, se=True):
        layers = [nn.Conv1d(ni, nf, k, padding="same"), nn.BatchNorm1d(nf, eps=1e-3), nn.ReLU()]
        super().__init__(*layers, *([SqueezeExcite(nf)] if se else []))


class MLSTMFCN(nn.Module):
    def __init__(self, n_vars=6, cells=8, n_classes=5):
        super().__init__()
        self.lstm = nn.LSTM(n_vars, cells, num_layers=1, batch_first=True)
        self.fcn = nn.Sequential(ConvBlock(n_vars, 8, 7), ConvBlock(8, 16, 5), ConvBlock(16, 8, 3, se=False))
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(cells + 8, n_classes)

    def forward(self, x):
        last = self.lstm(x)[0][:, -1]
        pooled = self.gap(self.fcn(x.permute(0, 2, 1))).squeeze(2)
        return self.fc(torch.cat([last, pooled], dim=1))


def make():
    torch.manual_seed(305)
    return with_statistics(MLSTMFCN())
