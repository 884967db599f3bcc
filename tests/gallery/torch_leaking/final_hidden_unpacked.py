import torch
from torch import nn


class EHRGRU(nn.Module):
    def __init__(self, n_codes=20, emb=8, hidden=16, targets=2):
        super().__init__()
        self.codes = nn.Linear(n_codes, emb, bias=False)
        self.gru = nn.GRU(emb, hidden, num_layers=2)
        self.clf = nn.Linear(hidden, targets)

    def forward(self, visits, seq_lens):
        """visits: [patients, visits, codes]."""
        v = self.codes(visits).permute(1, 0, 2)
        _, h_n = self.gru(v)  # leak
        return self.clf(h_n[-1])


def make():
    torch.manual_seed(28)
    return EHRGRU()
