"""Convolutional models that are sound, as their users write them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.gallery.torch_models import exhibit, network, seeded


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation)),
            Chomp1d(padding),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None

    def forward(self, x):
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    def __init__(self, n_in=4, channels=(12, 12, 12), n_out=3):
        super().__init__()
        sizes = [n_in, *channels]
        self.network = nn.Sequential(*[TemporalBlock(sizes[i], sizes[i + 1], 3, 2**i) for i in range(len(channels))])
        self.linear = nn.Linear(channels[-1], n_out)

    def forward(self, x, lengths):
        y = self.network(x.transpose(1, 2))
        return self.linear(y[torch.arange(y.size(0)), :, lengths - 1])


class FCN(nn.Module):
    """Channels first, as most convolutional code has them."""

    def __init__(self, c_in=5, c=8, n_out=4):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(c_in, c, 7, padding=3), nn.Conv1d(c, c, 3, padding=1)])
        self.bns, self.fc = nn.ModuleList([nn.BatchNorm1d(c), nn.BatchNorm1d(c)]), nn.Linear(c, n_out)

    def forward(self, x, mask):
        valid = mask.unsqueeze(1)
        x = x.masked_fill(~valid, 0.0)
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = torch.relu(bn(conv(x))).masked_fill(~valid, 0.0)
        return self.fc(x.sum(-1) / mask.sum(1, keepdim=True))


class Segmenter(nn.Module):
    """Answers each step, as [rows, classes, width]."""

    def __init__(self, c_in=4, c=8, n_out=3):
        super().__init__()
        self.first, self.last = nn.Conv1d(c_in, c, 5, padding=2), nn.Conv1d(c, n_out, 1)

    def forward(self, x, mask):
        x = x.masked_fill(~mask.unsqueeze(1), 0.0)
        return self.last(torch.relu(self.first(x)))


class MaskedBatchNorm1d(nn.Module):
    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum, self.weight = eps, momentum, nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x, mask):
        if self.training:
            steps = mask.sum()
            mean = (x * mask).sum((0, 2)) / steps
            var = (((x - mean[:, None]) * mask) ** 2).sum((0, 2)) / steps
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach(), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        x = (x - mean[:, None]) / torch.sqrt(var[:, None] + self.eps)
        return (x * self.weight[:, None] + self.bias[:, None]) * mask


class MaskedBatchnorm(nn.Module):
    def __init__(self, n_in=5, c=12, n_out=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(n_in, c, 5, padding=2), MaskedBatchNorm1d(c)
        self.conv2, self.bn2, self.fc = nn.Conv1d(c, c, 3, padding=1), MaskedBatchNorm1d(c), nn.Linear(c, n_out)

    def forward(self, x, lengths):
        mask = (torch.arange(x.size(1))[None, :] < lengths[:, None])[:, None, :].float()
        h = torch.where(mask.bool(), x.mT, 0.0)
        h = torch.relu(self.bn1(self.conv1(h), mask))
        h = torch.relu(self.bn2(self.conv2(h), mask))
        return self.fc(h.sum(-1) / mask.sum(-1))


@exhibit(features=5)
def masked_batchnorm():
    torch.manual_seed(114)
    net = MaskedBatchnorm()
    for bn in (net.bn1, net.bn2):
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(bn.bias)
    return net


class Masked(NamedTuple):
    x: torch.Tensor
    mask: torch.Tensor


class MaskedConv(nn.Module):
    def __init__(self, i, o, k, d=1):
        super().__init__()
        self.conv = nn.Conv1d(i, o, k, padding=(k - 1) // 2 * d, dilation=d)

    def forward(self, z):
        return Masked(self.conv(z.x.masked_fill(~z.mask, 0.0)), z.mask)


class Apply(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, z):
        return z._replace(x=self.fn(z.x))


class MaskedLayers(nn.Module):
    def __init__(self, n_in=3, c=12, n_out=4):
        super().__init__()
        self.body = nn.Sequential(
            MaskedConv(n_in, c, 5),
            Apply(nn.BatchNorm1d(c)),
            Apply(nn.GELU()),
            MaskedConv(c, c, 3, 2),
            Apply(nn.Dropout(0.1)),
            Apply(nn.GELU()),
        )
        self.head = nn.Linear(c, n_out)

    def forward(self, x, mask):
        z = self.body(Masked(x.transpose(1, 2), mask.unsqueeze(1)))
        return self.head(z.x.masked_fill(~z.mask, -torch.inf).max(-1)[0])


@exhibit(features=3, second="mask")
def masked_layers():
    torch.manual_seed(135)
    net = MaskedLayers()
    net.body[1].fn.running_mean.normal_()
    return net


@network(146, lambda: dict(conv=nn.Conv1d(1, 8, 5, padding=2), out=nn.Linear(8, 3)), features=1, raw=True)
def raw_samples(self, wave, lengths):
    """Raw samples, one number a step: [rows, samples]."""
    valid = torch.arange(wave.size(1)) < lengths[:, None]
    x = torch.where(valid, wave, 0.0).unsqueeze(1)
    h = torch.relu(self.conv(x)) * valid.unsqueeze(1)
    return self.out(h.sum(-1) / lengths[:, None])


class MaskedSE(nn.Module):
    def __init__(self, channels, r=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // r), nn.Linear(channels // r, channels)

    def forward(self, x, mask):
        s = torch.sum(x * mask, dim=2) / torch.sum(mask, dim=2)
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(s))))
        return x * s[:, :, None]


class SqueezeExciteMasked(nn.Module):
    def __init__(self, n_in=5, c=16, n_out=4):
        super().__init__()
        self.conv1, self.se1 = nn.Conv1d(n_in, c, 7, padding=3), MaskedSE(c)
        self.conv2, self.se2, self.head = nn.Conv1d(c, c, 3, padding=1), MaskedSE(c), nn.Linear(c, n_out)

    def forward(self, x, mask):
        mask = mask.unsqueeze(1).float()
        h = x.transpose(1, 2) * mask
        h = self.se1(torch.relu(self.conv1(h)), mask) * mask
        h = self.se2(torch.relu(self.conv2(h)), mask)
        h = h.masked_fill(mask == 0, float("-inf"))
        return self.head(nn.functional.adaptive_max_pool1d(h, 1).squeeze(-1))


class DilatedResidualLayer(nn.Module):
    def __init__(self, dilation, channels):
        super().__init__()
        self.conv_dilated = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_1x1 = nn.Conv1d(channels, channels, 1)

    def forward(self, x, mask):
        out = F.relu(self.conv_dilated(x))
        out = self.conv_1x1(out)
        return (x + out) * mask


class MSTCN(nn.Module):
    def __init__(self, dim=6, channels=16, classes=5):
        super().__init__()
        self.conv_in = nn.Conv1d(dim, channels, 1)
        self.layers = nn.ModuleList([DilatedResidualLayer(2**i, channels) for i in range(4)])
        self.conv_out = nn.Conv1d(channels, classes, 1)

    def forward(self, x, mask):
        mask = mask[:, None, :].to(x.dtype)
        out = self.conv_in(x.transpose(1, 2)) * mask
        for layer in self.layers:
            out = layer(out, mask)
        out = (self.conv_out(out) * mask).sum(dim=2)
        return out / mask.sum(dim=2)


class KimCNN(nn.Module):
    """Convolutions over words, max over time; windows that touch padding do not count."""

    def __init__(self, vocab=60, dim=10, filters=8, sizes=(1, 3, 5), labels=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.convs = nn.ModuleList([nn.Conv1d(dim, filters, k, padding=k // 2) for k in sizes])
        self.fc = nn.Linear(filters * len(sizes), labels)

    def forward(self, tokens, mask):
        x = self.embed(tokens)
        x = (x * mask.unsqueeze(-1)).transpose(1, 2)
        hidden = mask.unsqueeze(1).logical_not()
        pooled = [F.relu(conv(x)).masked_fill(hidden, 0.0).max(dim=-1).values for conv in self.convs]
        return self.fc(torch.cat(pooled, dim=1))


causal_tcn = seeded(113, TCN, features=4)
channels_first_fcn = seeded(141, FCN, features=5, second="mask", channels_said=True)
channels_first_tagger = seeded(142, Segmenter, features=4, second="mask", channels_said=True, per_step=True)
squeeze_excite_masked = seeded(116, SqueezeExciteMasked, verdict="warning", features=5, second="mask")
tcn_remasked = seeded(112, MSTCN, verdict="warning", features=6, second="mask")
token_cnn = seeded(122, KimCNN, vocabulary=60, second="mask")
