import torch
from torch import nn


class Pooled(nn.Module):
    def __init__(self, n_in=6, d=10, n_out=2):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.mix = nn.MultiheadAttention(d, 2, batch_first=True)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, key_padding_mask):
        h = torch.tanh(self.step(x))
        h, _ = self.mix(h, h, h, key_padding_mask=key_padding_mask)
        return self.out(h.amax(dim=1))  # leak


def make():
    torch.manual_seed(61)
    return Pooled()
