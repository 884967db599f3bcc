import torch
from torch import nn


class ViT1d(nn.Module):
    def __init__(self, n_in=5, dim=16, heads=2, n_out=5, max_len=200):
        super().__init__()
        self.to_embedding = nn.Linear(n_in, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len + 1, dim) * 0.3)
        layer = nn.TransformerEncoderLayer(dim, heads, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, n_out))

    def forward(self, x):
        x = self.to_embedding(x)
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.repeat(b, 1, 1), x), dim=1)
        x = x + self.pos_embedding[:, : n + 1]
        return self.mlp_head(self.transformer(x)[:, 0])


def make():
    torch.manual_seed(388)
    return ViT1d()
