import math

import torch
from torch import nn


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, dropout=0.1, max_len=500):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return self.dropout(x + self.pe[:, : x.size(1)])


class TransformerClassifier(nn.Module):
    def __init__(self, n_in=6, d_model=16, nhead=4, layers=2, n_out=4):
        super().__init__()
        self.d_model = d_model
        self.embed = nn.Linear(n_in, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, 32, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers)
        self.decoder = nn.Linear(d_model, n_out)

    def forward(self, src):
        x = self.pos_encoder(self.embed(src) * math.sqrt(self.d_model))
        return self.decoder(self.transformer_encoder(x).mean(dim=1))


def make():
    torch.manual_seed(386)
    return TransformerClassifier()
