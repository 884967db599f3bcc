import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class MACNNBlock(nn.Module):
    """Kernels of three sizes side by side, then attention over the channels."""

    def __init__(self, n_in, n_out, reduction=4):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(n_in, n_out, k, padding="same") for k in (3, 6, 12)])
        self.bn = nn.BatchNorm1d(3 * n_out)
        self.fc1 = nn.Linear(3 * n_out, 3 * n_out // reduction, bias=False)
        self.fc2 = nn.Linear(3 * n_out // reduction, 3 * n_out, bias=False)

    def forward(self, x):
        out = torch.relu(self.bn(torch.cat([conv(x) for conv in self.convs], dim=1)))
        attention = torch.sigmoid(self.fc2(torch.relu(self.fc1(out.mean(2)))))
        return out * attention.reshape(attention.shape[0], attention.shape[1], 1)


class MACNN(nn.Module):
    def __init__(self, in_channels=3, channels=4, classes=4):
        super().__init__()
        self.layer1 = MACNNBlock(in_channels, channels)
        self.layer2 = MACNNBlock(3 * channels, channels)
        self.layer3 = MACNNBlock(3 * channels, channels)
        self.pool1 = nn.MaxPool1d(3, stride=2, padding=1)
        self.pool2 = nn.MaxPool1d(3, stride=2, padding=1)
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(3 * channels, classes)

    def forward(self, x):
        x = self.pool1(self.layer1(x.permute(0, 2, 1)))
        x = self.pool2(self.layer2(x))
        return self.fc(self.gap(self.layer3(x)).flatten(1))


def make():
    torch.manual_seed(323)
    return with_statistics(MACNN())
