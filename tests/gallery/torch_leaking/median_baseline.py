import torch
from torch import nn


class BaselineRemoved(nn.Module):
    def __init__(self, leads=2, width=16, rhythms=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(leads, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.head = nn.Linear(width, rhythms)

    def forward(self, ecg, mask):
        ecg = ecg * mask[:, :, None]
        baseline, _ = ecg.median(dim=1, keepdim=True)  # leak
        h = self.net(ecg - baseline)
        h = torch.where(mask[:, :, None], h, torch.zeros(()))
        return self.head(h.sum(dim=1).div(mask.sum(dim=1)[:, None]))


def make():
    torch.manual_seed(47)
    return BaselineRemoved()
