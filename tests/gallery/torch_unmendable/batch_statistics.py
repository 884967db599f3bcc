import torch
import torch.nn.functional as F
from torch import nn


class AlwaysTraining(nn.Module):
    """Normalises with the statistics of the batch that it is given, as nobody should when serving."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(n_in, d, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(d) + 0.5), nn.Parameter(torch.randn(d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        z = self.conv(x.transpose(1, 2))
        z = F.batch_norm(z, None, None, self.weight, self.bias, training=True)
        return self.fc(torch.relu(z).mean(-1))


def make():
    torch.manual_seed(450)
    return AlwaysTraining()
