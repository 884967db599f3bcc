from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    n_features: int = 4
    d_model: int = 16
    n_classes: int = 2
    dropout: float = 0.1


class AttnPool(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(cfg.d_model, cfg.d_model), nn.Tanh(), nn.Linear(cfg.d_model, 1))

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self.score(h).squeeze(-1)
        logits = logits * mask
        weights = logits.softmax(dim=-1)  # leak
        return torch.einsum("bt,btd->bd", weights, h)


class Net(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(cfg.n_features, cfg.d_model), nn.GELU(), nn.Dropout(cfg.dropout))
        self.pool = AttnPool(cfg)
        self.head = nn.Linear(cfg.d_model, cfg.n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) * mask.unsqueeze(-1)
        return self.head(self.pool(h, mask))


def make() -> nn.Module:
    torch.manual_seed(5)
    return Net(Config())
