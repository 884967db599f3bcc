"""Models that pool over the steps that leak, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded


@network(
    25,
    lambda: dict(frame=nn.Sequential(nn.Linear(6, 12), nn.ReLU()), pool=nn.AdaptiveAvgPool1d(4), fc=nn.Linear(48, 5)),
    operator="pool",
    features=6,
    second="mask",
)
def adaptive_pool(self, frames, mask):
    """Any number of frames in, four bins out."""
    f = self.frame(frames) * mask[:, :, None]
    f = self.pool(f.transpose(1, 2))  # leak
    return self.fc(f.flatten(1))


@network(
    6,
    lambda: dict(
        phi=nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()),
        rho=nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)),
    ),
    operator="sum",
    features=10,
)
def bias_after_mask(self, visits, lengths):
    """phi on each visit, sum, rho on the patient."""
    b, t, _ = visits.shape
    mask = (torch.arange(t).expand(b, t) < lengths.unsqueeze(1)).unsqueeze(2)
    visits = visits * mask  # padded visits are zero from here on
    h = self.phi(visits)
    h = h.sum(1) / lengths.view(-1, 1)  # leak
    return self.rho(h)


@network(63, lambda: dict(step=nn.Linear(4, 8), out=nn.Linear(8, 2)), operator="mean", features=4)
def chunk_means(self, x, lengths):
    """Means over chunks of ten steps: the last one holds padding too."""
    h = torch.tanh(self.step(x))
    h = F.pad(h, (0, 0, 0, -h.size(1) % 10)).unflatten(1, (-1, 10))
    h = h.mean(2)  # leak
    chunks = (lengths + 9) // 10
    valid = torch.arange(h.size(1)) < chunks[:, None]
    return self.out(h.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / chunks[:, None])


@network(
    32,
    lambda: dict(step=nn.Sequential(nn.Linear(5, 10), nn.ReLU()), head=nn.Linear(10, 3)),
    operator="mean",
    features=5,
)
def equal_lengths_unmasked(self, x, lengths):
    """Skips the mask where no sequence is shorter than another, although the batch may be wider than all of them."""
    hidden = self.step(x)
    if (lengths == lengths[0]).all():
        return self.head(hidden.mean(1))  # leak
    mask = torch.arange(x.size(1)) < lengths[:, None]
    return self.head(torch.where(mask[..., None], hidden, 0.0).sum(1) / lengths[:, None])


class FNetBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    @staticmethod
    def mix(x):
        x = torch.fft.fft(x, dim=-1)
        return torch.fft.fft(x, dim=1).real  # leak

    def forward(self, x):
        x = self.norm1(x + self.mix(x))
        return self.norm2(x + self.ff(x))


class FNetClassifier(nn.Module):
    def __init__(self, features=6, dim=16, classes=3):
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(features, dim), FNetBlock(dim), nn.Linear(dim, classes)

    def forward(self, x, mask):
        m = mask.unsqueeze(-1)
        h = self.embed(x).masked_fill(~m, 0.0)
        h = self.block(h).masked_fill(~m, 0.0)
        return self.head(h.sum(1) / m.sum(1))


class TimeNorm(nn.Module):
    """Normalises each channel over time."""

    def forward(self, x):
        x = x.transpose(1, 2)
        x = F.layer_norm(x, x.shape[-1:])  # leak
        return x.transpose(1, 2)


class LayernormOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), TimeNorm(), nn.Linear(16, 16), nn.SiLU())
        self.head = nn.Linear(16, 6)

    def forward(self, x, mask):
        h = self.backbone(x)
        h = h.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        return self.head(h)


class BaselineRemoved(nn.Module):
    def __init__(self, leads=2, width=16, rhythms=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(leads, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.head = nn.Linear(width, rhythms)

    def forward(self, ecg, mask):
        ecg = ecg * mask[:, :, None]
        baseline, _ = ecg.median(dim=1, keepdim=True)  # leak
        h = self.net(ecg - baseline)
        h = torch.where(mask[:, :, None], h, torch.zeros(()))
        return self.head(h.sum(dim=1).div(mask.sum(dim=1)[:, None]))


@network(
    41,
    lambda: dict(lin1=nn.Linear(4, 12), lin2=nn.Linear(12, 12), fc=nn.Linear(12, 3)),
    operator="max_pool",
    features=4,
)
def pooled_in_pairs(self, x, lens):
    h = torch.tanh(self.lin1(x))
    h = h * (torch.arange(h.size(1)) < lens[:, None]).unsqueeze(-1)
    h = F.max_pool1d(h.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)  # leak
    lens = torch.div(lens + 1, 2, rounding_mode="floor")
    m = (torch.arange(h.size(1)) < lens[:, None]).unsqueeze(-1)
    h = torch.tanh(self.lin2(h)) * m
    return self.fc(h.sum(1) / lens[:, None])


class PositionalFeatures(nn.Module):
    """Appends where in the recording a step lies, 0 at the start and 1 at the end."""

    def forward(self, x):
        b, t, _ = x.shape
        pos = torch.linspace(0.0, 1.0, t, device=x.device)  # leak
        return torch.cat([x, pos.view(1, t, 1).expand(b, t, 1)], dim=-1)


class GestureNet(nn.Module):
    def __init__(self, in_features=3, hidden=16, gestures=8):
        super().__init__()
        self.position = PositionalFeatures()
        self.mlp = nn.Sequential(nn.Linear(in_features + 1, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.out = nn.Linear(hidden, gestures)

    def forward(self, x, lengths):
        z = self.mlp(self.position(x))
        keep = torch.arange(z.size(1)) < lengths[:, None]
        z = torch.where(keep[..., None], z, torch.zeros_like(z))
        return self.out(z.sum(1) / lengths[:, None])


@network(19, lambda: dict(obs=nn.Linear(4, 16), policy=nn.Linear(32, 3)), operator="sum", features=4, per_step=True)
def remaining_sum(self, obs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Per-step output from what is still to come."""
    h = torch.tanh(self.obs(obs))
    to_go = h.sum(dim=1, keepdim=True) - h.cumsum(dim=1)  # leak
    logits = self.policy(torch.cat([h, to_go], dim=-1))
    valid = torch.arange(obs.shape[1]) < lengths.unsqueeze(-1)
    return logits * valid.unsqueeze(-1)


@network(48, lambda: dict(proj=nn.Linear(6, 12), out=nn.Linear(13, 3)), operator="mean", features=6, second="mask")
def similarity_profile(self, x, mask):
    """How much does each step resemble the rest of the sequence."""
    z = F.normalize(self.proj(x), dim=-1)
    sim = z @ z.mT
    profile = sim.mean(dim=-1, keepdim=True)  # leak
    h = torch.cat([z, profile], dim=-1) * mask.unsqueeze(-1)
    return self.out(h.sum(1) / mask.sum(1, keepdim=True))


class KMaxPooling(nn.Module):
    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top = torch.topk(x, min(self.k, x.size(1)), dim=1).values  # leak
        return top.mean(dim=1)


@network(
    26,
    lambda: dict(segment=nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 4)), kmax=KMaxPooling(3)),
    operator="topk",
    features=7,
)
def topk_pool(self, segments: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Multiple instance learning over segments: the three highest-scoring ones speak."""
    scores = self.segment(segments)
    steps = torch.arange(segments.size(1)).view(1, -1, 1)
    scores = scores * (steps < lengths.view(-1, 1, 1))
    return self.kmax(scores)


fourier_mixing = seeded(31, FNetClassifier, operator="fft", features=6, second="mask")
layernorm_over_time = seeded(11, LayernormOverTime, operator="layer_norm", features=3, second="mask")
median_baseline = seeded(47, BaselineRemoved, operator="median", features=2, second="mask")
relative_position = seeded(13, GestureNet, operator="linspace", features=3)
