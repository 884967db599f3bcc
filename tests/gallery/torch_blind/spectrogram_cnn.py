import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class SpectrogramCNN(nn.Module):
    def __init__(self, bands=12, n_out=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 10, 3, stride=(2, 1), padding=1),
            nn.ReLU(),
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, n_out)

    def forward(self, spec):
        x = self.features(spec[:, None])
        return self.fc(self.gap(x).flatten(1))


def make():
    torch.manual_seed(382)
    return with_statistics(SpectrogramCNN())
