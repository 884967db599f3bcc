import torch
import torch.nn as nn
import torch.nn.functional as F


class ResidualBlock(nn.Module):
    def __init__(self, dim, dilation):
        super().__init__()
        self.conv_dilated = nn.Conv1d(dim, dim, 3, padding="same", dilation=dilation)
        self.conv_out = nn.Conv1d(dim, dim, 3, padding="same")

    def forward(self, x):
        out = F.relu(self.conv_dilated(x))
        out = self.conv_out(out)  # leak
        return x + out


class SingleStageTCN(nn.Module):
    def __init__(self, features=8, dim=16, layers=3, classes=5):
        super().__init__()
        self.conv_in = nn.Conv1d(features, dim, 1)
        self.blocks = nn.ModuleList([ResidualBlock(dim, 2**i) for i in range(layers)])
        self.conv_cls = nn.Conv1d(dim, classes, 1)

    def forward(self, x, mask):
        mask = mask.unsqueeze(1).float()
        out = self.conv_in(x.permute(0, 2, 1)) * mask
        for block in self.blocks:
            out = block(out) * mask
        return (self.conv_cls(out) * mask).permute(0, 2, 1)


def make():
    torch.manual_seed(30)
    return SingleStageTCN()
