import torch
import torch.nn as nn
import torch.nn.functional as F


class WholePool(nn.Module):
    """The pool's kernel is as wide as the batch."""

    def __init__(self, n_in=4, c=8, n_out=5):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, 3, padding=1)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        z = F.relu(self.conv(x.transpose(1, 2)))
        z = F.max_pool1d(z, kernel_size=z.size(2))
        return self.fc(z.squeeze(-1))


def make():
    torch.manual_seed(384)
    return WholePool()
