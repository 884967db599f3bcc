"""Models that pool over the steps that take no lengths, as their users write them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded


@network(419, lambda: dict(inp=nn.Linear(4, 6), fc=nn.Linear(30, 4)), features=4)
def cosine_basis(self, x):
    """The first coefficients of a cosine transform along time."""
    t = x.size(1)
    phase = math.pi * (2 * torch.arange(t) + 1) / (2 * t)
    basis = torch.cos(torch.arange(5)[:, None] * phase[None, :])
    return self.fc((basis @ self.inp(x) / t).flatten(1))


@network(416, lambda: dict(spatial=nn.Linear(6, 5), fc=nn.Linear(25, 3)), features=6)
def covariance_pool(self, x):
    """Which channels move together: the covariance over time."""
    z = self.spatial(x)
    z = z - z.mean(dim=1, keepdim=True)
    cov = torch.bmm(z.transpose(1, 2), z) / x.size(1)
    return self.fc(cov.flatten(1))


@network(
    362,
    lambda: dict(layer=nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12)), fc=nn.Linear(12, 4)),
    features=6,
)
def dense_in_rows(self, x):
    """Folds time into the batch, applies a layer of vectors, unfolds."""
    b, t, f = x.size()
    z = self.layer(x.contiguous().view(b * t, f))
    return self.fc(z.view(b, t, -1).mean(1))


class Deltas(nn.Module):
    def __init__(self, n_in=5, d=12, n_out=4):
        super().__init__()
        self.enc, self.out = nn.Sequential(nn.Linear(n_in, d), nn.ELU(), nn.Linear(d, d)), nn.Linear(d, n_out)

    def forward(self, x):
        dx = x[:, 1:] - x[:, :-1]
        return self.out(self.enc(dx).mean(dim=1))


@network(426, lambda: dict(enc=nn.Sequential(nn.Linear(5, 10), nn.Tanh()), fc=nn.Linear(30, 3)), features=5, shortest=2)
def early_against_late(self, x):
    h = self.enc(x)
    half = x.size(1) // 2
    early, late = h[:, :half].mean(dim=1), h[:, half:].mean(dim=1)
    return self.fc(torch.cat([early, late, h[:, half]], dim=-1))


@network(355, lambda: dict(mlp=nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))), features=5, shortest=4)
def last_steps(self, x):
    """Only the last four steps count; shorter ones raise in the linear layer."""
    return self.mlp(x[:, -4:].flatten(1))


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


@network(354, lambda: dict(step=nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 4))), features=5)
def logsumexp_pool(self, x):
    logits = self.step(x)
    return torch.logsumexp(3.0 * logits, dim=1) / 3.0


@network(
    345,
    lambda: dict(local=nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 16)), head=nn.Linear(16, 5)),
    features=3,
)
def max_pool_mlp(self, points):
    return self.head(self.local(points).max(dim=1).values)


@network(344, lambda: dict(net=nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))), features=8)
def mean_in_front(self, x):
    return self.net(x.mean(1))


@network(401, lambda: dict(enc=nn.Linear(5, 10), out=nn.Linear(20, 3)), features=5, per_step=True)
def memory_of_the_mean(self, x):
    """Every step is compared with the mean of all; one answer for each step."""
    h = torch.relu(self.enc(x))
    mean = h.mean(dim=1, keepdim=True)
    return self.out(torch.cat([h - mean, mean.expand(-1, x.size(1), -1)], dim=-1))


@network(349, lambda: dict(proj=nn.Linear(5, 10), out=nn.Linear(10, 3)), features=5)
def norm_pool(self, x):
    z = torch.tanh(self.proj(x))
    return self.out(z.norm(p=2, dim=1))


@network(504, lambda: dict(embed=nn.Linear(16, 12), head=nn.Linear(12, 3)), features=4)
def patches_filled_up(self, x):
    """Patches of four steps, with zeros behind the last so that it is whole."""
    rows, steps, n_in = x.shape
    x = F.pad(x, (0, 0, 0, -steps % 4))
    patches = x.reshape(rows, -1, 4 * n_in)
    return self.head(F.gelu(self.embed(patches)).mean(dim=1))


@network(
    394,
    lambda: dict(mlp=nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 12)), fc=nn.Linear(12, 3)),
    features=4,
)
def positions_as_share(self, x):
    """Appends how far into the recording each step lies, up to 1."""
    b, t, _ = x.shape
    share = torch.arange(1, t + 1, dtype=x.dtype) / t
    share = share.view(1, t, 1).expand(b, t, 1)
    return self.fc(self.mlp(torch.cat([x, share], dim=2)).max(dim=1)[0])


@network(
    393, lambda: dict(inp=nn.Linear(5, 12), left=nn.Embedding(256, 12), fc=nn.Linear(12, 4)), features=5, longest=256
)
def positions_from_the_end(self, x):
    """Embeds how many steps are left."""
    t = x.shape[1]
    left = t - 1 - torch.arange(t, device=x.device)
    h = torch.relu(self.inp(x) + self.left(left))
    return self.fc(h.mean(dim=1))


@network(353, lambda: dict(f=nn.Linear(4, 8), fc=nn.Linear(24, 3)), features=4)
def range_pool(self, x):
    h = self.f(x)
    low, high = h.amin(dim=1), h.amax(dim=1)
    return self.fc(torch.cat([low, high, high - low], dim=1))


@network(
    356,
    lambda: dict(rate=nn.Sequential(nn.Linear(4, 8), nn.Softplus()), fc=nn.Linear(16, 3)),
    features=4,
    per_step=True,
)
def remaining_sum(self, x):
    """At each step, how much is still to come."""
    rate = self.rate(x)
    to_go = rate.flip(1).cumsum(1).flip(1)
    return self.fc(torch.cat([rate, torch.log1p(to_go)], dim=-1))


@network(
    411,
    lambda: dict(enc=nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 12)), fc=nn.Linear(12, 4)),
    features=3,
    shortest=8,
)
def sliding_windows(self, x):
    """One vector for each window of eight steps, every four steps."""
    windows = x.unfold(1, 8, 4)
    return self.fc(self.enc(windows.flatten(2)).amax(dim=1))


@network(347, lambda: dict(enc=nn.Sequential(nn.Linear(6, 12), nn.Tanh()), fc=nn.Linear(24, 4)), features=6, shortest=2)
def std_pool(self, x):
    z = self.enc(x)
    return self.fc(torch.cat([z.mean(dim=1), z.std(dim=1)], dim=-1))


@network(
    454,
    lambda: dict(inp=nn.Linear(5, 12), fc=nn.Linear(12, 3), position=nn.Parameter(torch.randn(1, 12, 16))),
    features=5,
)
def stretched_positions(self, x):
    """Sixteen learned positions, drawn out to whatever width there is."""
    drawn = F.interpolate(self.position, size=x.size(1), mode="linear", align_corners=False)
    return self.fc(torch.relu(self.inp(x) + drawn.transpose(1, 2)).mean(1))


@network(406, lambda: dict(enc=nn.Sequential(nn.Linear(5, 12), nn.SiLU()), fc=nn.Linear(12, 4)), features=5)
def sum_over_root(self, x):
    return self.fc(self.enc(x).sum(dim=1) / x.size(1) ** 0.5)


@network(501, lambda: dict(embed=nn.Linear(4, 8), head=nn.Linear(24, 3)), features=4, shortest=3)
def thirds(self, x):
    """Beginning, middle and end of a movement, each pooled; the end has one or two steps more."""
    h = torch.tanh(self.embed(x))
    t = x.shape[1] // 3
    parts = [h[:, :t], h[:, t : 2 * t], h[:, 2 * t :]]
    return self.head(torch.cat([part.mean(dim=1) for part in parts], dim=1))


@network(
    350,
    lambda: dict(instance=nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12)), fc=nn.Linear(12, 4)),
    features=4,
    shortest=3,
)
def topk_pool(self, bag):
    scores = self.instance(bag)
    top, _ = scores.topk(3, dim=1)
    return self.fc(top.mean(dim=1))


@network(502, lambda: dict(embed=nn.Linear(4, 8), head=nn.Linear(8, 3)), features=4)
def trimmed_mean(self, x):
    """A mean without the tenth of the values at each end, which noise may have made."""
    h = self.embed(x).sort(dim=1).values
    cut = x.shape[1] // 10
    return self.head(h[:, cut : x.shape[1] - cut].mean(dim=1))


differences = seeded(357, Deltas, features=5, shortest=2)
layer_norm_over_time = seeded(372, NormOverAll, features=4)
