import torch
import torch.nn.functional as F
from torch import nn


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryAttention(nn.Module):
    def __init__(self, n_in=5, d=16, heads=2, n_out=3):
        super().__init__()
        self.heads = heads
        self.inp, self.qkv, self.fc = nn.Linear(n_in, d), nn.Linear(d, 3 * d), nn.Linear(d, n_out)
        half = d // heads // 2
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(half) / half))

    def forward(self, x):
        b, t, _ = x.shape
        angles = torch.arange(t).float()[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        q, k, v = self.qkv(self.inp(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.fc(y.transpose(1, 2).flatten(2).mean(1))


def make():
    torch.manual_seed(412)
    return RotaryAttention()
