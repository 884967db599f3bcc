"""Published architectures: models that pool over the steps that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network


@network(363, lambda: dict(embedding=nn.Embedding(70, 12, padding_idx=0), fc=nn.Linear(12, 4)), vocabulary=70)
def fast_text(self, text):
    return self.fc(self.embedding(text).mean(dim=1))


@network(413, lambda: dict(inp=nn.Linear(4, 9), mix=nn.Linear(9, 9), out=nn.Linear(9, 3)), features=4, per_step=True)
def temporal_shift(self, x):
    """Some channels come from the next step, some from the one before; zeros beyond the ends."""
    h = torch.relu(self.inp(x))
    ahead = F.pad(h, (0, 0, 0, 1))[:, 1:, :3]
    behind = F.pad(h, (0, 0, 1, 0))[:, :-1, 3 : 2 * 3]
    h = torch.cat([ahead, behind, h[..., 2 * 3 :]], dim=-1)
    return self.out(torch.relu(self.mix(h)))
