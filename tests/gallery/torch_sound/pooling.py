"""Models that pool over the steps that are sound, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class SegmentMean(nn.Module):
    """Only valid steps are computed; they are put together by row afterwards."""

    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.Linear(d, d))
        self.out = nn.Linear(d, n_out)

    def forward(self, x, mask):
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


class StepwiseMLP(nn.Module):
    def __init__(self, n_in=10, d=16, n_out=3):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(n_in, d), ResidualMLP(d), ResidualMLP(d))
        self.rho = nn.Linear(3 * d, n_out)

    def forward(self, x, lengths):
        pad = torch.arange(x.size(1)) >= lengths.unsqueeze(1)
        h = self.phi(x)
        h0 = h.masked_fill(pad.unsqueeze(-1), 0)
        mean = h0.sum(1) / lengths.unsqueeze(1)
        top = h.masked_fill(pad.unsqueeze(-1), -torch.inf).amax(1)
        low = h.masked_fill(pad.unsqueeze(-1), torch.inf).amin(1)
        return self.rho(torch.cat([mean, top, low], dim=-1))


class SoftMaxPool(nn.Module):
    def __init__(self, n_in=7, d=16, n_out=6):
        super().__init__()
        self.segment = nn.Sequential(nn.Linear(n_in, d), nn.Tanh(), nn.Linear(d, n_out))

    def forward(self, x, lengths):
        scores = self.segment(x)
        outside = torch.arange(x.size(1)).view(1, -1, 1) >= lengths.view(-1, 1, 1)
        scores = scores.masked_fill(outside, -torch.inf)
        return torch.logsumexp(scores, dim=1) - torch.log(lengths.float()).unsqueeze(1)


class MaskFirst(nn.Module):
    def __init__(self, n_in=4, d=8, n_out=2):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, mask, x):
        h = torch.tanh(self.step(x)).masked_fill(~mask.unsqueeze(-1), float("-inf"))
        return self.out(h.amax(1))


class RunningAverage(nn.Module):
    """Differences to the step before, then the average so far, read where the sequence ends."""

    def __init__(self, n_in=3, d=16, n_out=4):
        super().__init__()
        self.mix = nn.Linear(2 * n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lengths):
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        h = torch.tanh(self.mix(torch.cat([x, x - before], dim=-1)))
        average = h.cumsum(dim=1) / torch.arange(1, x.size(1) + 1).view(1, -1, 1)
        return self.out(torch.take_along_dim(average, (lengths - 1).view(-1, 1, 1), dim=1).squeeze(1))


class StatisticsPooling(nn.Module):
    def __init__(self, feats=6, dim=12, classes=4):
        super().__init__()
        self.frame = nn.Linear(feats, dim)
        self.fc = nn.Linear(2 * dim, classes)

    def forward(self, x, mask):
        h = F.leaky_relu(self.frame(x))
        w = mask.float() / mask.float().sum(1, keepdim=True)
        mean = torch.einsum("bt,btd->bd", w, h)
        var = torch.einsum("bt,btd->bd", w, (h - mean.unsqueeze(1)) ** 2)
        return self.fc(torch.cat([mean, var.clamp(min=1e-5).sqrt()], dim=1))


boolean_indexing = seeded(131, SegmentMean)
deep_sets = seeded(124, StepwiseMLP)
logsumexp_pool = seeded(136, SoftMaxPool)
mask_before_steps = seeded(144, MaskFirst)
running_average = seeded(138, RunningAverage)
statistics_pooling = seeded(128, StatisticsPooling)
