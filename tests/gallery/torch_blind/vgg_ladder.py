import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


def stage(n_in, n_out):
    return [
        nn.Conv1d(n_in, n_out, 3, padding=1),
        nn.BatchNorm1d(n_out),
        nn.ReLU(inplace=True),
        nn.MaxPool1d(2),
    ]


class VGG1d(nn.Module):
    def __init__(self, leads=2, n_out=5):
        super().__init__()
        self.features = nn.Sequential(*stage(leads, 8), *stage(8, 12), *stage(12, 16))
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, n_out))

    def forward(self, ecg):
        x = self.pool(self.features(ecg))
        return self.classifier(torch.flatten(x, 1))


def make():
    torch.manual_seed(380)
    return with_statistics(VGG1d())
