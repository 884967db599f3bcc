import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import with_statistics


class EncoderLayer(nn.Module):
    """The transformer for time series normalises over the batch, not over the features."""

    def __init__(self, d_model, n_heads, d_ff):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, n_heads, dropout=0.1, batch_first=True)
        self.ff1, self.ff2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.norm1, self.norm2 = nn.BatchNorm1d(d_model), nn.BatchNorm1d(d_model)
        self.drop = nn.Dropout(0.1)

    def normalise(self, norm, x):
        return norm(x.permute(0, 2, 1)).permute(0, 2, 1)

    def forward(self, x):
        attended, _ = self.self_attn(x, x, x)
        x = self.normalise(self.norm1, x + self.drop(attended))
        return self.normalise(self.norm2, x + self.drop(self.ff2(F.gelu(self.ff1(x)))))


class TSTClassifier(nn.Module):
    def __init__(self, feat_dim=6, d_model=16, n_heads=4, max_len=256, n_classes=4):
        super().__init__()
        self.d_model = d_model
        self.project_inp = nn.Linear(feat_dim, d_model)
        self.pos = nn.Parameter(torch.empty(max_len, d_model).uniform_(-0.1, 0.1))
        self.layers = nn.ModuleList([EncoderLayer(d_model, n_heads, 32) for _ in range(2)])
        self.output = nn.Linear(d_model, n_classes)

    def forward(self, x):
        h = self.project_inp(x) * self.d_model**0.5
        h = h + self.pos[: h.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.output(F.gelu(h).mean(dim=1))


def make():
    torch.manual_seed(310)
    return with_statistics(TSTClassifier())
