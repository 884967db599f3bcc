import torch
import torch.nn.functional as F
from torch import nn


class PatchesFilledUp(nn.Module):
    """Patches of four steps, with zeros behind the last so that it is whole."""

    def __init__(self, n_in=4, patch=4, hidden=12, n_out=3):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(n_in * patch, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        rows, steps, n_in = x.shape
        x = F.pad(x, (0, 0, 0, -steps % self.patch))
        patches = x.reshape(rows, -1, self.patch * n_in)
        return self.head(F.gelu(self.embed(patches)).mean(dim=1))


def make():
    torch.manual_seed(504)
    return PatchesFilledUp()
