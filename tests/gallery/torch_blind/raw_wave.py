import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class RawWave(nn.Module):
    """Samples come as [batch, time]."""

    def __init__(self, c=8, n_out=4):
        super().__init__()
        self.front = nn.Conv1d(1, c, kernel_size=8, stride=4, padding=4)
        self.bn = nn.BatchNorm1d(c)
        self.conv = nn.Conv1d(c, c, 3, padding=1)
        self.fc = nn.Linear(c, n_out)

    def forward(self, wave):
        x = torch.relu(self.bn(self.front(wave.unsqueeze(1))))
        x = torch.relu(self.conv(x))
        return self.fc(x.mean(-1))


def make():
    torch.manual_seed(404)
    return with_statistics(RawWave())
