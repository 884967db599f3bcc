import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class XCM(nn.Module):
    """Explainable: one branch keeps the variables apart (2d), the other mixes them (1d)."""

    def __init__(self, n_vars=5, window=9, nf=6, n_classes=4):
        super().__init__()
        self.conv2d = nn.Sequential(
            nn.Conv2d(1, nf, (1, window), padding="same"), nn.BatchNorm2d(nf), nn.ReLU(), nn.Conv2d(nf, 1, 1), nn.ReLU()
        )
        self.conv1d = nn.Sequential(
            nn.Conv1d(n_vars, nf, window, padding="same"),
            nn.BatchNorm1d(nf),
            nn.ReLU(),
            nn.Conv1d(nf, 1, 1),
            nn.ReLU(),
        )
        self.mix = nn.Sequential(nn.Conv1d(n_vars + 1, nf, window, padding="same"), nn.BatchNorm1d(nf), nn.ReLU())
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(nf, n_classes)

    def forward(self, x):
        apart = self.conv2d(x.unsqueeze(1)).squeeze(1)
        mixed = self.conv1d(x)
        out = self.mix(torch.cat((apart, mixed), dim=1))
        return self.fc(self.gap(out).squeeze(-1))


def make():
    torch.manual_seed(311)
    return with_statistics(XCM())
