import torch
from torch import nn


class DeepSets(nn.Module):
    """phi on each visit, sum, rho on the patient."""

    def __init__(self, n_feats=10, width=32, n_out=2):
        super().__init__()
        self.phi = nn.Sequential(
            nn.Linear(n_feats, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))

    def forward(self, visits, lengths):
        b, t, _ = visits.shape
        mask = (torch.arange(t).expand(b, t) < lengths.unsqueeze(1)).unsqueeze(2)
        visits = visits * mask  # padded visits are zero from here on
        h = self.phi(visits)
        h = h.sum(1) / lengths.view(-1, 1)  # leak
        return self.rho(h)


def make():
    torch.manual_seed(6)
    return DeepSets()
