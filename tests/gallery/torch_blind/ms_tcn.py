import copy

import torch
import torch.nn as nn
import torch.nn.functional as F


class DilatedResidualLayer(nn.Module):
    def __init__(self, dilation, channels):
        super().__init__()
        self.conv_dilated = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_1x1 = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout()

    def forward(self, x):
        return x + self.dropout(self.conv_1x1(F.relu(self.conv_dilated(x))))


class SingleStage(nn.Module):
    def __init__(self, layers, channels, dim, classes):
        super().__init__()
        self.conv_in = nn.Conv1d(dim, channels, 1)
        self.layers = nn.ModuleList([DilatedResidualLayer(2**i, channels) for i in range(layers)])
        self.conv_out = nn.Conv1d(channels, classes, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for layer in self.layers:
            x = layer(x)
        return self.conv_out(x)


class MultiStageTCN(nn.Module):
    """Labels every frame; each later stage refines the probabilities of the one before."""

    def __init__(self, stages=3, layers=4, channels=8, dim=6, classes=4):
        super().__init__()
        self.stage1 = SingleStage(layers, channels, dim, classes)
        refine = SingleStage(layers, channels, classes, classes)
        self.stages = nn.ModuleList([copy.deepcopy(refine) for _ in range(stages - 1)])

    def forward(self, x):
        out = self.stage1(x)
        for stage in self.stages:
            out = stage(F.softmax(out, dim=1))
        return out


def make():
    torch.manual_seed(317)
    return MultiStageTCN()
