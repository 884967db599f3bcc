"""Published architectures: models that pool over the steps that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class FastText(nn.Module):
    def __init__(self, vocab=70, dim=12, classes=4):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim, padding_idx=0)
        self.fc = nn.Linear(dim, classes)

    def forward(self, text):
        return self.fc(self.embedding(text).mean(dim=1))


class TemporalShift(nn.Module):
    """Some channels come from the next step, some from the one before; zeros beyond the ends."""

    def __init__(self, n_in=4, d=9, n_out=3):
        super().__init__()
        self.k = d // 3
        self.inp, self.mix, self.out = nn.Linear(n_in, d), nn.Linear(d, d), nn.Linear(d, n_out)

    def forward(self, x):
        h = torch.relu(self.inp(x))
        ahead = F.pad(h, (0, 0, 0, 1))[:, 1:, : self.k]
        behind = F.pad(h, (0, 0, 1, 0))[:, :-1, self.k : 2 * self.k]
        h = torch.cat([ahead, behind, h[..., 2 * self.k :]], dim=-1)
        return self.out(torch.relu(self.mix(h)))


fast_text = seeded(363, FastText)
temporal_shift = seeded(413, TemporalShift)
