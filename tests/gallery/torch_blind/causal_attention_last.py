import torch
import torch.nn.functional as F
from torch import nn


class GPTClassifier(nn.Module):
    """Causal all the way, and read off at the end."""

    def __init__(self, n_in=6, d=16, heads=2, n_out=4, block_size=300):
        super().__init__()
        self.heads = heads
        self.inp, self.wpe = nn.Linear(n_in, d), nn.Embedding(block_size, d)
        self.ln, self.c_attn, self.c_proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.head = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, _ = x.size()
        h = self.inp(x) + self.wpe(torch.arange(0, t, dtype=torch.long))
        q, k, v = self.c_attn(self.ln(h)).split(16, dim=2)
        q, k, v = (z.view(b, t, self.heads, 16 // self.heads).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, 16))
        return self.head(h[:, -1, :])


def make():
    torch.manual_seed(395)
    return GPTClassifier()
