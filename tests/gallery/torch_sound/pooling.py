"""Models that pool over the steps that are sound, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network


@network(
    131,
    lambda: dict(net=nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12)), out=nn.Linear(12, 3)),
    features=5,
    second="mask",
)
def boolean_indexing(self, x, mask):
    """Only valid steps are computed; they are put together by row afterwards."""
    valid = self.net(x[mask])
    rows = mask.nonzero()[:, 0]
    total = valid.new_zeros(x.size(0), valid.size(1)).index_add(0, rows, valid)
    return self.out(total / mask.sum(1, keepdim=True))


class ResidualMLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        return x + self.net(x)


@network(
    124,
    lambda: dict(phi=nn.Sequential(nn.Linear(10, 16), ResidualMLP(16), ResidualMLP(16)), rho=nn.Linear(48, 3)),
    features=10,
)
def deep_sets(self, x, lengths):
    pad = torch.arange(x.size(1)) >= lengths.unsqueeze(1)
    h = self.phi(x)
    h0 = h.masked_fill(pad.unsqueeze(-1), 0)
    mean = h0.sum(1) / lengths.unsqueeze(1)
    top = h.masked_fill(pad.unsqueeze(-1), -torch.inf).amax(1)
    low = h.masked_fill(pad.unsqueeze(-1), torch.inf).amin(1)
    return self.rho(torch.cat([mean, top, low], dim=-1))


@network(136, lambda: dict(segment=nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 6))), features=7)
def logsumexp_pool(self, x, lengths):
    scores = self.segment(x)
    outside = torch.arange(x.size(1)).view(1, -1, 1) >= lengths.view(-1, 1, 1)
    scores = scores.masked_fill(outside, -torch.inf)
    return torch.logsumexp(scores, dim=1) - torch.log(lengths.float()).unsqueeze(1)


@network(
    144, lambda: dict(step=nn.Linear(4, 8), out=nn.Linear(8, 2)), features=4, second="mask", arguments=("x", "mask")
)
def mask_before_steps(self, mask, x):
    h = torch.tanh(self.step(x)).masked_fill(~mask.unsqueeze(-1), float("-inf"))
    return self.out(h.amax(1))


@network(138, lambda: dict(mix=nn.Linear(6, 16), out=nn.Linear(16, 4)), features=3)
def running_average(self, x, lengths):
    """Differences to the step before, then the average so far, read where the sequence ends."""
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    h = torch.tanh(self.mix(torch.cat([x, x - before], dim=-1)))
    average = h.cumsum(dim=1) / torch.arange(1, x.size(1) + 1).view(1, -1, 1)
    return self.out(torch.take_along_dim(average, (lengths - 1).view(-1, 1, 1), dim=1).squeeze(1))


@network(128, lambda: dict(frame=nn.Linear(6, 12), fc=nn.Linear(24, 4)), verdict="warning", features=6, second="mask")
def statistics_pooling(self, x, mask):
    h = F.leaky_relu(self.frame(x))
    w = mask.float() / mask.float().sum(1, keepdim=True)
    mean = torch.einsum("bt,btd->bd", w, h)
    var = torch.einsum("bt,btd->bd", w, (h - mean.unsqueeze(1)) ** 2)
    return self.fc(torch.cat([mean, var.clamp(min=1e-5).sqrt()], dim=1))
