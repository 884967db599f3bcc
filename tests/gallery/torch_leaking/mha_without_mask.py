import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]  # leak
        return x + self.mlp(self.ln2(x))


class Model(nn.Module):
    def __init__(self, in_dim=6, dim=16, depth=2, heads=4, num_classes=3):
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x, mask):
        x = self.proj(x)
        for blk in self.blocks:
            x = blk(x)
        m = mask.unsqueeze(-1).type_as(x)
        return self.head((x * m).sum(1) / m.sum(1))


def make():
    torch.manual_seed(23)
    return Model()
