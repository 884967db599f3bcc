import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.gallery.torch_models import with_statistics


def conv_bn(n_in, n_out, kernel):
    return nn.Sequential(nn.Conv1d(n_in, n_out, kernel, padding="same"), nn.BatchNorm1d(n_out))


class ResNetBlock(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv_bn(n_in, n_out, 8), conv_bn(n_out, n_out, 5), conv_bn(n_out, n_out, 3)
        self.shortcut = nn.BatchNorm1d(n_out) if n_in == n_out else conv_bn(n_in, n_out, 1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y))
        return F.relu(self.conv3(y) + self.shortcut(x))


class ResNetTSC(nn.Module):
    """`[batch, time, variables]` in; the convolutions want the time last."""

    def __init__(self, n_vars=5, width=8, n_classes=4):
        super().__init__()
        self.blocks = nn.Sequential(
            ResNetBlock(n_vars, width), ResNetBlock(width, 2 * width), ResNetBlock(2 * width, 2 * width)
        )
        self.classifier = nn.Linear(2 * width, n_classes)

    def forward(self, x):
        features = self.blocks(x.permute(0, 2, 1))
        return self.classifier(features.mean(dim=2))


def make():
    torch.manual_seed(302)
    return with_statistics(ResNetTSC())
