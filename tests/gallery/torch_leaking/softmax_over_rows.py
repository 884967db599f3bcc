import torch
from torch import nn


class AttnGRU(nn.Module):
    def __init__(self, n_in=6, hidden=16, n_out=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True)
        self.attn = nn.Linear(hidden, 1)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x, mask):
        h, _ = self.gru(x)
        a = self.attn(h)
        a[~mask] = -1e4
        a = torch.softmax(a, 0)  # leak
        ctx = torch.bmm(a.transpose(1, 2), h.masked_fill(~mask.unsqueeze(-1), 0.0)).squeeze(1)
        return self.fc(ctx)


def make():
    torch.manual_seed(36)
    return AttnGRU()
