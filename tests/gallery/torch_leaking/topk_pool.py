import torch
from torch import nn


class KMaxPooling(nn.Module):
    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = torch.topk(x, min(self.k, x.size(1)), dim=1).values  # leak
        return top.mean(dim=1)


class MILNet(nn.Module):
    """Multiple instance learning over segments: the three highest-scoring ones speak."""

    def __init__(self, dim: int = 7, classes: int = 4):
        super().__init__()
        self.segment = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, classes))
        self.kmax = KMaxPooling(3)

    def forward(self, segments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        scores = self.segment(segments)
        steps = torch.arange(segments.size(1)).view(1, -1, 1)
        scores = scores * (steps < lengths.view(-1, 1, 1))
        return self.kmax(scores)


def make() -> nn.Module:
    torch.manual_seed(26)
    return MILNet()
