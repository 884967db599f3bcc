from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class AttentionConfig:
    input_dim: int = 4
    d: int = 16
    heads: int = 2
    n_classes: int = 3


class AdditiveAttention(nn.Module):
    def __init__(self, cfg: AttentionConfig) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(cfg.d, cfg.d), nn.Tanh(), nn.Linear(cfg.d, cfg.heads, bias=False))

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        penalty = (1.0 - mask.to(h.dtype)) * -1e9
        weights = torch.softmax(self.score(h) + penalty.unsqueeze(-1), dim=1)
        return torch.einsum("bth,btd->bhd", weights, h).flatten(1)


class Model(nn.Module):
    def __init__(self, cfg: AttentionConfig | None = None) -> None:
        super().__init__()
        cfg = cfg or AttentionConfig()
        self.inp = nn.Sequential(nn.Linear(cfg.input_dim, cfg.d), nn.LayerNorm(cfg.d), nn.ReLU())
        self.attention = AdditiveAttention(cfg)
        self.out = nn.Linear(cfg.heads * cfg.d, cfg.n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out(self.attention(self.inp(x), mask))


def make() -> nn.Module:
    torch.manual_seed(108)
    return Model()
