import torch
import torch.nn.functional as F
from torch import nn


class UNet1d(nn.Module):
    """Down by two pools, up again by repeating steps, cut to the width of what is joined; an answer for each step."""

    def __init__(self, n_in=3, c=6, n_out=3):
        super().__init__()
        self.enc1, self.enc2 = nn.Conv1d(n_in, c, 3, padding=1), nn.Conv1d(c, 2 * c, 3, padding=1)
        self.pool = nn.MaxPool1d(2, ceil_mode=True)
        self.bottom = nn.Conv1d(2 * c, 2 * c, 3, padding=1)
        self.dec2, self.dec1 = nn.Conv1d(4 * c, c, 3, padding=1), nn.Conv1d(2 * c, c, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.out = nn.Conv1d(c, n_out, 1)

    def joined(self, deep, skip):
        return torch.cat([self.up(deep)[:, :, : skip.size(2)], skip], dim=1)

    def forward(self, x):
        e1 = F.relu(self.enc1(x.transpose(1, 2)))
        e2 = F.relu(self.enc2(self.pool(e1)))
        b = F.relu(self.bottom(self.pool(e2)))
        d2 = F.relu(self.dec2(self.joined(b, e2)))
        d1 = F.relu(self.dec1(self.joined(d2, e1)))
        return self.out(d1).transpose(1, 2)


def make():
    torch.manual_seed(402)
    return UNet1d()
