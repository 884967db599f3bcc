import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class CRNN(nn.Module):
    """Sound events: 2d convolutions and pools over time and bands, a BiGRU over what is left of time."""

    def __init__(self, bands=16, channels=6, hidden=8, events=4):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d((2, 4)),
        )
        self.gru = nn.GRU(channels * (bands // 8), hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, events)

    def forward(self, spectrogram):
        maps = self.cnn(spectrogram.unsqueeze(1))
        frames = maps.permute(0, 2, 1, 3).flatten(2)
        states, _ = self.gru(frames)
        return self.fc(states.mean(1))


def make():
    torch.manual_seed(321)
    return with_statistics(CRNN())
