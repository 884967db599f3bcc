import torch
from torch import nn


class Ranked(nn.Module):
    """Each number is replaced by the one of that rank in the batch."""

    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.gru, self.fc = nn.GRU(n_in, d, batch_first=True), nn.Linear(2 * d, n_out)

    def forward(self, x):
        h = self.gru(x)[1][-1]
        ranked, _ = h.sort(dim=0)
        return self.fc(torch.cat([h, ranked], dim=1))


def make():
    torch.manual_seed(460)
    return Ranked()
