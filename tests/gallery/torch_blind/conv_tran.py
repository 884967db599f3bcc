import math

import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class RelativeAttention(nn.Module):
    """A learned scalar for each distance is added to the weights after the softmax."""

    def __init__(self, emb=16, heads=4, reach=300):
        super().__init__()
        self.heads, self.reach, self.scale = heads, reach, emb**-0.5
        self.key, self.value, self.query = (nn.Linear(emb, emb, bias=False) for _ in range(3))
        self.relative = nn.Parameter(torch.randn(2 * reach - 1, heads) * 0.05)
        self.to_out = nn.LayerNorm(emb)

    def forward(self, x):
        b, t, e = x.shape
        k = self.key(x).reshape(b, t, self.heads, -1).permute(0, 2, 3, 1)
        v = self.value(x).reshape(b, t, self.heads, -1).transpose(1, 2)
        q = self.query(x).reshape(b, t, self.heads, -1).transpose(1, 2)
        weights = torch.softmax(torch.matmul(q, k) * self.scale, dim=-1)
        steps = torch.arange(t, device=x.device)
        distance = steps[:, None] - steps[None, :] + self.reach - 1
        weights = weights + self.relative[distance].permute(2, 0, 1).unsqueeze(0)
        return self.to_out(torch.matmul(weights, v).transpose(1, 2).reshape(b, t, e))


class ConvTran(nn.Module):
    def __init__(self, channels=3, emb=16, max_len=300, num_classes=5):
        super().__init__()
        self.temporal = nn.Sequential(
            nn.Conv2d(1, 2 * emb, kernel_size=(1, 8), padding="same"), nn.BatchNorm2d(2 * emb), nn.GELU()
        )
        self.spatial = nn.Sequential(nn.Conv2d(2 * emb, emb, kernel_size=(channels, 1)), nn.BatchNorm2d(emb), nn.GELU())
        place = torch.arange(max_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, emb, 2) * (-math.log(10000.0) / emb))
        table = torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=2).flatten(1)
        self.register_buffer("pe", table.unsqueeze(0))
        self.attention = RelativeAttention(emb, reach=max_len)
        self.norm1, self.norm2 = nn.LayerNorm(emb), nn.LayerNorm(emb)
        self.ff = nn.Sequential(nn.Linear(emb, 32), nn.ReLU(), nn.Linear(32, emb))
        self.out = nn.Linear(emb, num_classes)

    def forward(self, x):
        h = self.spatial(self.temporal(x.unsqueeze(1))).squeeze(2).permute(0, 2, 1)
        att = self.norm1(h + self.attention(h + self.pe[:, : h.size(1)]))
        out = self.norm2(att + self.ff(att))
        return self.out(out.permute(0, 2, 1).mean(-1))


def make():
    torch.manual_seed(312)
    return with_statistics(ConvTran())
