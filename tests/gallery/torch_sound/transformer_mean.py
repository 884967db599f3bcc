import math

import torch
import torch.nn as nn


class TSTransformer(nn.Module):
    """Time first inside, as the original layers want it."""

    def __init__(self, feat_dim=8, d_model=16, n_heads=2, num_layers=2, num_classes=4, max_len=1024):
        super().__init__()
        self.project_inp = nn.Linear(feat_dim, d_model)
        pe = torch.zeros(max_len, d_model)
        pos = torch.arange(0, max_len, dtype=torch.float).unsqueeze(1)
        div = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(pos * div)
        pe[:, 1::2] = torch.cos(pos * div)
        self.register_buffer("pe", pe.unsqueeze(1))
        layer = nn.TransformerEncoderLayer(d_model, n_heads, 32, 0.1)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.output_layer = nn.Linear(d_model, num_classes)

    def forward(self, X, lengths):
        padding = torch.arange(X.size(1))[None, :].ge(lengths[:, None])
        inp = X.permute(1, 0, 2)
        inp = self.project_inp(inp) * math.sqrt(16)
        inp = inp + self.pe[: inp.size(0)]
        out = self.transformer_encoder(inp, src_key_padding_mask=padding).permute(1, 0, 2)
        out = nn.functional.gelu(out) * (~padding).unsqueeze(-1)
        return self.output_layer(out.sum(1) / lengths.unsqueeze(1))


def make():
    torch.manual_seed(110)
    return TSTransformer()
