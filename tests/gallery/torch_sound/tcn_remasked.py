import torch
import torch.nn as nn
import torch.nn.functional as F


class DilatedResidualLayer(nn.Module):
    def __init__(self, dilation, channels):
        super().__init__()
        self.conv_dilated = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_1x1 = nn.Conv1d(channels, channels, 1)

    def forward(self, x, mask):
        out = F.relu(self.conv_dilated(x))
        out = self.conv_1x1(out)
        return (x + out) * mask


class MSTCN(nn.Module):
    def __init__(self, dim=6, channels=16, classes=5):
        super().__init__()
        self.conv_in = nn.Conv1d(dim, channels, 1)
        self.layers = nn.ModuleList([DilatedResidualLayer(2**i, channels) for i in range(4)])
        self.conv_out = nn.Conv1d(channels, classes, 1)

    def forward(self, x, mask):
        mask = mask[:, None, :].to(x.dtype)
        out = self.conv_in(x.transpose(1, 2)) * mask
        for layer in self.layers:
            out = layer(out, mask)
        out = (self.conv_out(out) * mask).sum(dim=2)
        return out / mask.sum(dim=2)


def make():
    torch.manual_seed(112)
    return MSTCN()
