import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class Strided(nn.Module):
    def __init__(self, n_in=4, n_out=5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(n_in, 8, 5, stride=2, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Conv1d(12, 16, 4, stride=3, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(16, n_out)

    def forward(self, x):
        return self.classifier(self.body(x.transpose(1, 2)))


def make():
    torch.manual_seed(373)
    return with_statistics(Strided())
