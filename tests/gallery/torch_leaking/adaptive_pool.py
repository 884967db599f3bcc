import torch
import torch.nn as nn


class TemporalPyramid(nn.Module):
    """Any number of frames in, four bins out."""

    def __init__(self, in_channels: int = 6, width: int = 12, bins: int = 4, n_classes: int = 5):
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool1d(bins)
        self.fc = nn.Linear(width * bins, n_classes)

    def forward(self, frames, mask):
        f = self.frame(frames) * mask[:, :, None]
        f = self.pool(f.transpose(1, 2))  # leak
        return self.fc(f.flatten(1))


def make():
    torch.manual_seed(25)
    return TemporalPyramid()
