import torch
import torch.nn.functional as F
from torch import nn


class FixedLengthCNN(nn.Module):
    """Every recording is stretched to 32 points first."""

    def __init__(self, channels: int = 3, n_classes: int = 4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(channels, 12, 5, stride=2), nn.ReLU(), nn.Conv1d(12, 12, 5, stride=2), nn.ReLU()
        )
        self.classifier = nn.Linear(12 * 5, n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = (x * mask.unsqueeze(2)).movedim(1, 2)
        x = F.interpolate(x, size=32, mode="linear", align_corners=False)  # leak
        return self.classifier(self.features(x).flatten(1))


def make():
    torch.manual_seed(39)
    return FixedLengthCNN()
