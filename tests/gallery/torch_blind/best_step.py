import torch
from torch import nn


class BestStep(nn.Module):
    """The one step with the highest score answers for all."""

    def __init__(self, n_in=5, d=10, n_out=4):
        super().__init__()
        self.gru = nn.GRU(n_in, d, batch_first=True, bidirectional=True)
        self.score, self.fc = nn.Linear(2 * d, 1), nn.Linear(2 * d, n_out)

    def forward(self, x):
        h, _ = self.gru(x)
        best = self.score(h).argmax(dim=1, keepdim=True)
        return self.fc(h.gather(1, best.expand(-1, -1, h.size(-1))).squeeze(1))


def make():
    torch.manual_seed(421)
    return BestStep()
