import math

import torch
import torch.nn as nn


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=512):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return x + self.pe[: x.size(1)]


class TransformerClassifier(nn.Module):
    def __init__(self, input_dim=8, d_model=16, nhead=2, num_layers=2, num_classes=5):
        super().__init__()
        self.embedding = nn.Linear(input_dim, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(d_model, num_classes)

    def forward(self, src, lengths):
        key_padding_mask = torch.arange(src.size(1)).unsqueeze(0) >= lengths.unsqueeze(1)
        h = self.pos_encoder(self.embedding(src))
        h = self.encoder(h, src_key_padding_mask=key_padding_mask)
        h = torch.mean(h, dim=1)  # leak
        return self.classifier(h)


def make():
    torch.manual_seed(18)
    return TransformerClassifier()
