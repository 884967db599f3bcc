import torch
from torch import nn


class SpeechEncoder(nn.Module):
    def __init__(self, n_mels=8, d=16, n_out=4):
        super().__init__()
        self.front = nn.Linear(n_mels, d)
        self.attn = nn.MultiheadAttention(d, 4)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, n_out)

    def forward(self, feats, feat_lens):
        """feats: [time, batch, mels]."""
        t = feats.size(0)
        pad = ~(torch.ones(feats.size(1), t).cumsum(dim=1) <= feat_lens.unsqueeze(1))
        x = self.front(feats)
        x = self.norm(x + self.attn(x, x, x, key_padding_mask=pad)[0])
        x = x.masked_fill(pad.t().unsqueeze(-1), 0.0)
        return self.out(x.sum(0) / feat_lens.unsqueeze(1))


def make():
    torch.manual_seed(134)
    return SpeechEncoder()
