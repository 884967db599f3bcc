"""Models that pool over the steps that take no lengths, as their users write them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class CosineBasis(nn.Module):
    """The first coefficients of a cosine transform along time."""

    def __init__(self, n_in=4, d=6, keep=5, n_out=4):
        super().__init__()
        self.keep = keep
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(keep * d, n_out)

    def forward(self, x):
        t = x.size(1)
        phase = math.pi * (2 * torch.arange(t) + 1) / (2 * t)
        basis = torch.cos(torch.arange(self.keep)[:, None] * phase[None, :])
        return self.fc((basis @ self.inp(x) / t).flatten(1))


class CovariancePool(nn.Module):
    """Which channels move together: the covariance over time."""

    def __init__(self, n_in=6, d=5, n_out=3):
        super().__init__()
        self.spatial, self.fc = nn.Linear(n_in, d), nn.Linear(d * d, n_out)

    def forward(self, x):
        z = self.spatial(x)
        z = z - z.mean(dim=1, keepdim=True)
        cov = torch.bmm(z.transpose(1, 2), z) / x.size(1)
        return self.fc(cov.flatten(1))


class TimeDistributed(nn.Module):
    """Folds time into the batch, applies a layer of vectors, unfolds."""

    def __init__(self, n_in=6, d=12, n_out=4):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, f = x.size()
        z = self.layer(x.contiguous().view(b * t, f))
        return self.fc(z.view(b, t, -1).mean(1))


class Deltas(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=4):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(n_in, d), nn.ELU(), nn.Linear(d, d))
        self.out = nn.Linear(d, n_out)

    def forward(self, x):
        dx = x[:, 1:] - x[:, :-1]
        return self.out(self.enc(dx).mean(dim=1))


class EarlyAgainstLate(nn.Module):
    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.enc, self.fc = nn.Sequential(nn.Linear(n_in, d), nn.Tanh()), nn.Linear(3 * d, n_out)

    def forward(self, x):
        h = self.enc(x)
        half = x.size(1) // 2
        early, late = h[:, :half].mean(dim=1), h[:, half:].mean(dim=1)
        return self.fc(torch.cat([early, late, h[:, half]], dim=-1))


class RecentWindow(nn.Module):
    """Only the last four steps count; shorter ones raise in the linear layer."""

    def __init__(self, n_in=5, recent=4, n_out=3):
        super().__init__()
        self.recent = recent
        self.mlp = nn.Sequential(nn.Linear(n_in * recent, 16), nn.ReLU(), nn.Linear(16, n_out))

    def forward(self, x):
        return self.mlp(x[:, -self.recent :].flatten(1))


class NormOverAll(nn.Module):
    """Normalises over time and features together, by hand: `nn.LayerNorm` wants a fixed width for that."""

    def __init__(self, n_in=4, d=10, n_out=3, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.gain, self.bias = nn.Parameter(torch.rand(d) + 0.5), nn.Parameter(torch.randn(d) * 0.3)
        self.proj, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.proj(x)
        mean = h.mean(dim=(1, 2), keepdim=True)
        var = h.var(dim=(1, 2), keepdim=True, unbiased=False)
        h = (h - mean) / torch.sqrt(var + self.eps) * self.gain + self.bias
        return self.fc(torch.relu(h).mean(1))


class SmoothMax(nn.Module):
    def __init__(self, n_in=5, d=10, n_out=4, sharpness=3.0):
        super().__init__()
        self.r = sharpness
        self.step = nn.Sequential(nn.Linear(n_in, d), nn.Tanh(), nn.Linear(d, n_out))

    def forward(self, x):
        logits = self.step(x)
        return torch.logsumexp(self.r * logits, dim=1) / self.r


class PointNet(nn.Module):
    def __init__(self, n_in=3, n_out=5):
        super().__init__()
        self.local = nn.Sequential(nn.Linear(n_in, 12), nn.ReLU(), nn.Linear(12, 16))
        self.head = nn.Linear(16, n_out)

    def forward(self, points):
        return self.head(self.local(points).max(dim=1).values)


class MeanMLP(nn.Module):
    def __init__(self, n_in=8, hidden=16, n_out=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), nn.Linear(hidden, n_out))

    def forward(self, x):
        return self.net(x.mean(1))


class ContextGate(nn.Module):
    """Every step is compared with the mean of all; one answer for each step."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.enc = nn.Linear(n_in, d)
        self.out = nn.Linear(2 * d, n_out)

    def forward(self, x):
        h = torch.relu(self.enc(x))
        mean = h.mean(dim=1, keepdim=True)
        return self.out(torch.cat([h - mean, mean.expand(-1, x.size(1), -1)], dim=-1))


class Energy(nn.Module):
    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.proj = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x):
        z = torch.tanh(self.proj(x))
        return self.out(z.norm(p=2, dim=1))


class PatchesFilledUp(nn.Module):
    """Patches of four steps, with zeros behind the last so that it is whole."""

    def __init__(self, n_in=4, patch=4, hidden=12, n_out=3):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(n_in * patch, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        rows, steps, n_in = x.shape
        x = F.pad(x, (0, 0, 0, -steps % self.patch))
        patches = x.reshape(rows, -1, self.patch * n_in)
        return self.head(F.gelu(self.embed(patches)).mean(dim=1))


class Progress(nn.Module):
    """Appends how far into the recording each step lies, up to 1."""

    def __init__(self, n_in=4, d=12, n_out=3):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in + 1, d), nn.Tanh(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        b, t, _ = x.shape
        share = torch.arange(1, t + 1, dtype=x.dtype) / t
        share = share.view(1, t, 1).expand(b, t, 1)
        return self.fc(self.mlp(torch.cat([x, share], dim=2)).max(dim=1)[0])


class Countdown(nn.Module):
    """Embeds how many steps are left."""

    def __init__(self, n_in=5, d=12, table=256, n_out=4):
        super().__init__()
        self.inp, self.left = nn.Linear(n_in, d), nn.Embedding(table, d)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        t = x.shape[1]
        left = t - 1 - torch.arange(t, device=x.device)
        h = torch.relu(self.inp(x) + self.left(left))
        return self.fc(h.mean(dim=1))


class RangePool(nn.Module):
    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.f = nn.Linear(n_in, d)
        self.fc = nn.Linear(3 * d, n_out)

    def forward(self, x):
        h = self.f(x)
        low, high = h.amin(dim=1), h.amax(dim=1)
        return self.fc(torch.cat([low, high, high - low], dim=1))


class ToGo(nn.Module):
    """At each step, how much is still to come."""

    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.rate = nn.Sequential(nn.Linear(n_in, d), nn.Softplus())
        self.fc = nn.Linear(2 * d, n_out)

    def forward(self, x):
        rate = self.rate(x)
        to_go = rate.flip(1).cumsum(1).flip(1)
        return self.fc(torch.cat([rate, torch.log1p(to_go)], dim=-1))


class SlidingWindows(nn.Module):
    """One vector for each window of eight steps, every four steps."""

    def __init__(self, n_in=3, window=8, stride=4, d=12, n_out=4):
        super().__init__()
        self.window, self.stride = window, stride
        self.enc = nn.Sequential(nn.Linear(n_in * window, d), nn.ReLU(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        windows = x.unfold(1, self.window, self.stride)
        return self.fc(self.enc(windows.flatten(2)).amax(dim=1))


class MeanStd(nn.Module):
    def __init__(self, n_in=6, d=12, n_out=4):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(n_in, d), nn.Tanh())
        self.fc = nn.Linear(2 * d, n_out)

    def forward(self, x):
        z = self.enc(x)
        return self.fc(torch.cat([z.mean(dim=1), z.std(dim=1)], dim=-1))


class Stretched(nn.Module):
    """Sixteen learned positions, drawn out to whatever width there is."""

    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.inp, self.fc = nn.Linear(n_in, d), nn.Linear(d, n_out)
        self.position = nn.Parameter(torch.randn(1, d, 16))

    def forward(self, x):
        drawn = F.interpolate(self.position, size=x.size(1), mode="linear", align_corners=False)
        return self.fc(torch.relu(self.inp(x) + drawn.transpose(1, 2)).mean(1))


class SumOverRoot(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=4):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(n_in, d), nn.SiLU())
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        return self.fc(self.enc(x).sum(dim=1) / x.size(1) ** 0.5)


class Thirds(nn.Module):
    """Beginning, middle and end of a movement, each pooled; the end has one or two steps more."""

    def __init__(self, n_in=4, hidden=8, n_out=3):
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.head = nn.Linear(3 * hidden, n_out)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        t = x.shape[1] // 3
        parts = [h[:, :t], h[:, t : 2 * t], h[:, 2 * t :]]
        return self.head(torch.cat([part.mean(dim=1) for part in parts], dim=1))


class TopKPool(nn.Module):
    def __init__(self, n_in=4, d=12, k=3, n_out=4):
        super().__init__()
        self.k = k
        self.instance = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.Linear(d, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, bag):
        scores = self.instance(bag)
        top, _ = scores.topk(self.k, dim=1)
        return self.fc(top.mean(dim=1))


class TrimmedMean(nn.Module):
    """A mean without the tenth of the values at each end, which noise may have made."""

    def __init__(self, n_in=4, hidden=8, n_out=3):
        super().__init__()
        self.embed = nn.Linear(n_in, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        h = self.embed(x).sort(dim=1).values
        cut = x.shape[1] // 10
        return self.head(h[:, cut : x.shape[1] - cut].mean(dim=1))


cosine_basis = seeded(419, CosineBasis)
covariance_pool = seeded(416, CovariancePool)
dense_in_rows = seeded(362, TimeDistributed)
differences = seeded(357, Deltas)
early_against_late = seeded(426, EarlyAgainstLate)
last_steps = seeded(355, RecentWindow)
layer_norm_over_time = seeded(372, NormOverAll)
logsumexp_pool = seeded(354, SmoothMax)
max_pool_mlp = seeded(345, PointNet)
mean_in_front = seeded(344, MeanMLP)
memory_of_the_mean = seeded(401, ContextGate)
norm_pool = seeded(349, Energy)
patches_filled_up = seeded(504, PatchesFilledUp)
positions_as_share = seeded(394, Progress)
positions_from_the_end = seeded(393, Countdown)
range_pool = seeded(353, RangePool)
remaining_sum = seeded(356, ToGo)
sliding_windows = seeded(411, SlidingWindows)
std_pool = seeded(347, MeanStd)
stretched_positions = seeded(454, Stretched)
sum_over_root = seeded(406, SumOverRoot)
thirds = seeded(501, Thirds)
topk_pool = seeded(350, TopKPool)
trimmed_mean = seeded(502, TrimmedMean)
