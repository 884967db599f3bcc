import torch
from torch import nn


class CLSTransformer(nn.Module):
    def __init__(self, n_in=6, d_model=16, n_heads=4, n_layers=2, n_classes=5, max_len=200):
        super().__init__()
        self.proj = nn.Linear(n_in, d_model)
        self.cls_token = nn.Parameter(torch.randn(1, 1, d_model) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, max_len + 1, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, n_heads, 2 * d_model, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers)
        self.mlp_head = nn.Linear(d_model, n_classes)

    def forward(self, x, mask):
        b = x.shape[0]
        x = torch.cat([self.cls_token.expand(b, -1, -1), self.proj(x)], dim=1)
        x = x + self.pos[:, : x.shape[1]]
        ignore = torch.cat([torch.zeros(b, 1, dtype=torch.bool), ~mask], dim=1)
        x = self.encoder(x, src_key_padding_mask=ignore)
        return self.mlp_head(x[:, 0])


def make():
    torch.manual_seed(109)
    return CLSTransformer()
