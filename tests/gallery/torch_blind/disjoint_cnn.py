import torch
import torch.nn.functional as F
from torch import nn


class DisjointCnn(nn.Module):
    """Time and channels apart: a convolution along the steps, then one across all channels."""

    def __init__(self, channels=4, filters=8, n_out=3):
        super().__init__()
        self.temporal = nn.Conv2d(1, filters, (1, 8), padding=(0, 4))
        self.spatial = nn.Conv2d(filters, filters, (channels, 1))
        self.pool = nn.MaxPool2d((1, 3), (1, 2), padding=(0, 1))
        self.fc = nn.Linear(filters, n_out)

    def forward(self, x):
        h = F.elu(self.spatial(F.elu(self.temporal(x.transpose(1, 2).unsqueeze(1)))))
        return self.fc(self.pool(h).squeeze(2).mean(dim=2))


def make():
    torch.manual_seed(510)
    return DisjointCnn()
