"""Convolutional models that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import exhibit, network, seeded, with_statistics


class AveragePools(nn.Module):
    def __init__(self, n_in=5, c=8, n_out=3):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(n_in, c, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False),
            nn.Conv1d(c, c, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool1d(2, ceil_mode=True),
            nn.AvgPool1d(3, stride=1, padding=1),
        )
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        return self.fc(self.net(x.transpose(1, 2)).mean(dim=2))


class ChannelsFirst(nn.Module):
    def __init__(self, c_in=3, c=10, c_out=4):
        super().__init__()
        self.conv = nn.Conv1d(c_in, c, kernel_size=3, padding=1)
        self.conv2, self.fc = nn.Conv1d(c, c, kernel_size=3, padding=1), nn.Linear(c, c_out)

    def forward(self, x):
        x = nn.functional.silu(self.conv(x))
        x = nn.functional.silu(self.conv2(x))
        return self.fc(torch.mean(x, dim=-1))


class Dilated(nn.Module):
    def __init__(self, n_in=6, c=8, n_out=3, depth=5):
        super().__init__()
        self.inp = nn.Conv1d(n_in, c, 1)
        self.layers = nn.ModuleList([nn.Conv1d(c, c, 3, padding="same", dilation=2**i) for i in range(depth)])
        self.out = nn.Linear(c, n_out)

    def forward(self, x):
        x = self.inp(x.permute(0, 2, 1))
        for layer in self.layers:
            x = x + torch.nn.functional.gelu(layer(x))
        return self.out(x.permute(0, 2, 1)).mean(dim=1)


class DownAndUp(nn.Module):
    """Thinned by a convolution, brought back by a transposed one, and cut; an answer for each step."""

    def __init__(self, n_in=3, c=8, n_out=3):
        super().__init__()
        self.down = nn.Conv1d(n_in, c, 4, stride=2, padding=2)
        self.up, self.out = nn.ConvTranspose1d(c, c, 4, stride=2, padding=1), nn.Conv1d(c, n_out, 1)

    def forward(self, x):
        z = torch.relu(self.down(x.transpose(1, 2)))
        z = torch.relu(self.up(z))[:, :, : x.size(1)]
        return self.out(z).transpose(1, 2)


class GroupNormNet(nn.Module):
    def __init__(self, n_in=5, c=12, n_out=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(n_in, c, 5, padding=2),
            nn.GroupNorm(3, c),
            nn.ReLU(),
            nn.Conv1d(c, c, 3, padding=1),
            nn.GroupNorm(1, c),
            nn.ReLU(),
        )
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        return self.fc(self.layers(x.transpose(1, 2)).amax(2))


@exhibit(features=5)
def group_norm_convs():
    torch.manual_seed(370)
    net = GroupNormNet()
    for layer in (net.layers[1], net.layers[4]):
        nn.init.normal_(layer.weight, 1.0, 0.2)
        nn.init.normal_(layer.bias, 0.0, 0.2)
    return net


class InstanceNormNet(nn.Module):
    """Each recording is brought to mean 0 and deviation 1 before anything else."""

    def __init__(self, n_in=3, c=8, n_out=3):
        super().__init__()
        self.norm = nn.InstanceNorm1d(n_in, affine=True)
        self.conv1, self.norm1 = nn.Conv1d(n_in, c, 7, padding=3), nn.InstanceNorm1d(c)
        self.conv2, self.fc = nn.Conv1d(c, c, 3, padding=1), nn.Linear(c, n_out)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(self.norm(x))))
        return self.fc(torch.relu(self.conv2(x)).mean(dim=2))


class MaxPools(nn.Module):
    def __init__(self, n_in=5, c=8, n_out=3):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(n_in, c, 5, padding=2), nn.Conv1d(c, c, 3, padding=1)
        self.pool1, self.pool2 = nn.MaxPool1d(3, stride=2, padding=1), nn.MaxPool1d(2, ceil_mode=True)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = self.pool1(torch.tanh(self.conv1(x)))
        x = self.pool2(torch.tanh(self.conv2(x)))
        return self.fc(x.mean(dim=2))


class InvertedResidual(nn.Module):
    def __init__(self, n_in, n_out, stride, expand=2):
        super().__init__()
        wide = n_in * expand
        self.skip = stride == 1 and n_in == n_out
        self.conv = nn.Sequential(
            nn.Conv1d(n_in, wide, 1, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU6(),
            nn.Conv1d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU6(),
            nn.Conv1d(wide, n_out, 1, bias=False),
            nn.BatchNorm1d(n_out),
        )

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNet1d(nn.Module):
    def __init__(self, n_in=6, n_out=4):
        super().__init__()
        self.stem = nn.Conv1d(n_in, 8, 3, stride=1, padding=1)
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.act, self.fc = nn.Hardswish(), nn.Linear(12, n_out)

    def forward(self, x):
        x = self.act(self.blocks(self.stem(x.mT)))
        return self.fc(x.mean([-1]))


@network(506, lambda: dict(conv=nn.Conv1d(4, 8, 3, padding=1), head=nn.Linear(8, 3)), features=4)
def normalised_over_time(self, x):
    """Each channel is normalised over all steps, by layer_norm without weights."""
    h = self.conv(x.transpose(1, 2))
    h = F.layer_norm(h, (h.shape[-1],), eps=1e-2)
    return self.head(torch.relu(h).mean(dim=2))


@network(360, lambda: dict(conv=nn.Conv1d(3, 8, 5, padding=2), fc=nn.Linear(8, 4)), features=3)
def peak_scaled(self, x):
    """Divides each recording by its own peak."""
    x = x + 0.1
    x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)
    h = torch.relu(self.conv(x.transpose(1, 2)))
    return self.fc(h.mean(-1))


@network(384, lambda: dict(conv=nn.Conv1d(4, 8, 3, padding=1), fc=nn.Linear(8, 5)), features=4)
def pool_kernel_of_the_width(self, x):
    """The pool's kernel is as wide as the batch."""
    z = F.relu(self.conv(x.transpose(1, 2)))
    z = F.max_pool1d(z, kernel_size=z.size(2))
    return self.fc(z.squeeze(-1))


@network(
    458, lambda: dict(conv=nn.Conv1d(4, 6, 5, padding=2), pool=nn.AdaptiveAvgPool1d(8), fc=nn.Linear(48, 3)), features=4
)
def pool_of_eight(self, x):
    return self.fc(self.pool(torch.relu(self.conv(x.transpose(1, 2)))).flatten(1))


class RawWave(nn.Module):
    """Samples come as [batch, time]."""

    def __init__(self, c=8, n_out=4):
        super().__init__()
        self.front, self.bn = nn.Conv1d(1, c, kernel_size=8, stride=4, padding=4), nn.BatchNorm1d(c)
        self.conv, self.fc = nn.Conv1d(c, c, 3, padding=1), nn.Linear(c, n_out)

    def forward(self, wave):
        x = torch.relu(self.bn(self.front(wave.unsqueeze(1))))
        x = torch.relu(self.conv(x))
        return self.fc(x.mean(-1))


@network(512, lambda: dict(embed=nn.Linear(4, 4), conv=nn.Conv2d(1, 6, 3, padding=1), head=nn.Linear(6, 3)), features=4)
def recurrence_plot(self, x):
    """How near each two steps are, as a picture, and a convolution over that."""
    h = self.embed(x)
    near = torch.exp(-(h[:, :, None] - h[:, None]).pow(2).mean(dim=-1))
    picture = torch.relu(self.conv(near.unsqueeze(1)))
    return self.head(picture.mean(dim=(2, 3)))


@network(377, lambda: dict(conv=nn.Conv1d(2, 8, 7), fc=nn.Linear(8, 4)), features=2, shortest=4)
def reflect_padding(self, x):
    x = F.pad(x.transpose(1, 2), (3, 3), mode="reflect")
    return self.fc(torch.tanh(self.conv(x)).max(dim=2).values)


class EdgeRepeated(nn.Module):
    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, c, 5, padding=2, padding_mode="replicate")
        self.conv2, self.fc = nn.Conv1d(c, c, 3, padding=1, padding_mode="replicate"), nn.Linear(c, n_out)

    def forward(self, x):
        x = torch.relu(self.conv1(x.transpose(1, 2)))
        x = torch.relu(self.conv2(x))
        return self.fc(x.mean(dim=-1))


@network(462, lambda: dict(conv=nn.Conv1d(3, 6, 5, padding=2), fc=nn.Linear(192, 4)), features=3)
def resampled_to_32(self, x):
    x = F.interpolate(x.transpose(1, 2), size=32, mode="linear", align_corners=False)
    return self.fc(torch.relu(self.conv(x)).flatten(1))


@network(364, lambda: dict(filters=nn.Conv1d(6, 8, 9, padding="same"), fc=nn.Linear(9, 3)), features=6)
def root_of_squares(self, x):
    """The root of the mean square of every channel, and of all channels together."""
    y = self.filters(x.transpose(1, 2))
    each = y.pow(2).mean(dim=2).sqrt()
    every = y.pow(2).mean(dim=(1, 2)).sqrt().unsqueeze(1)
    return self.fc(torch.cat([each, every], dim=1))


class SpectrogramCNN(nn.Module):
    def __init__(self, bands=12, n_out=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 10, 3, stride=(2, 1), padding=1),
            nn.ReLU(),
        )
        self.gap, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(10, n_out)

    def forward(self, spec):
        x = self.features(spec[:, None])
        return self.fc(self.gap(x).flatten(1))


class SEBlock(nn.Module):
    def __init__(self, c, r=2):
        super().__init__()
        self.excite = nn.Sequential(nn.Linear(c, c // r), nn.ReLU(inplace=True), nn.Linear(c // r, c), nn.Sigmoid())

    def forward(self, x):
        b, c, _ = x.size()
        return x * self.excite(x.mean(-1)).view(b, c, 1)


class SENet1d(nn.Module):
    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.stem = nn.Conv1d(n_in, c, 5, padding=2)
        self.se1, self.conv, self.se2 = SEBlock(c), nn.Conv1d(c, c, 3, padding=1), SEBlock(c)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = self.se1(torch.relu(self.stem(x.transpose(1, 2))))
        x = self.se2(torch.relu(self.conv(x)) + x)
        return self.fc(x.max(-1)[0])


class Strided(nn.Module):
    def __init__(self, n_in=4, n_out=5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(n_in, 8, 5, stride=2, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Conv1d(12, 16, 4, stride=3, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(16, n_out)

    def forward(self, x):
        return self.classifier(self.body(x.transpose(1, 2)))


@network(418, lambda: dict(conv=nn.Conv1d(3, 8, 5, padding=2), fc=nn.Linear(8, 3)), features=3)
def there_and_back(self, x):
    """The sequence and then its mirror image, as one that is twice as long."""
    twice = torch.cat([x, x.flip(1)], dim=1)
    return self.fc(torch.relu(self.conv(twice.transpose(1, 2))).mean(-1))


class TokenCNN(nn.Module):
    def __init__(self, vocab=60, d=10, c=12, n_out=4):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.conv = nn.Sequential(nn.Conv1d(d, c, 3, padding=1), nn.ReLU(), nn.Conv1d(c, c, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(c, n_out)

    def forward(self, tokens):
        return self.fc(self.conv(self.emb(tokens).transpose(1, 2)).max(-1)[0])


@network(
    423,
    lambda: dict(
        fine=nn.Conv1d(4, 8, 3, padding=1), coarse=nn.Conv1d(4, 8, 5, stride=3, padding=2), fc=nn.Linear(8, 3)
    ),
    features=4,
)
def two_scales(self, x):
    """A fine and a coarse view, one behind the other along time, and one mean of both."""
    x = x.transpose(1, 2)
    both = torch.cat([self.fine(x), self.coarse(x)], dim=2)
    return self.fc(torch.relu(both).mean(dim=2))


class UNet1d(nn.Module):
    """Down by two pools, up again by repeating steps, cut to the width of what is joined; an answer for each step."""

    def __init__(self, n_in=3, c=6, n_out=3):
        super().__init__()
        self.enc1, self.enc2 = nn.Conv1d(n_in, c, 3, padding=1), nn.Conv1d(c, 2 * c, 3, padding=1)
        self.pool, self.bottom = nn.MaxPool1d(2, ceil_mode=True), nn.Conv1d(2 * c, 2 * c, 3, padding=1)
        self.dec2, self.dec1 = nn.Conv1d(4 * c, c, 3, padding=1), nn.Conv1d(2 * c, c, 3, padding=1)
        self.up, self.out = nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv1d(c, n_out, 1)

    def joined(self, deep, skip):
        return torch.cat([self.up(deep)[:, :, : skip.size(2)], skip], dim=1)

    def forward(self, x):
        e1 = F.relu(self.enc1(x.transpose(1, 2)))
        e2 = F.relu(self.enc2(self.pool(e1)))
        b = F.relu(self.bottom(self.pool(e2)))
        d2 = F.relu(self.dec2(self.joined(b, e2)))
        d1 = F.relu(self.dec1(self.joined(d2, e1)))
        return self.out(d1).transpose(1, 2)


class ValidConvs(nn.Module):
    """No padding anywhere: each layer is shorter than the one before."""

    def __init__(self, n_in=3, n_out=4):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(n_in, 8, 5), nn.Conv1d(8, 8, 3, dilation=2)
        self.conv3, self.fc = nn.Conv1d(8, 12, 3, stride=2), nn.Linear(12, n_out)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean(dim=2))


class VariancePool(nn.Module):
    """Log power of each filter: the variance along time, as for EEG."""

    def __init__(self, channels=6, filters=8, n_out=4):
        super().__init__()
        self.spatial = nn.Conv1d(channels, filters, 1, bias=False)
        self.temporal = nn.Conv1d(filters, filters, 7, padding=3, groups=filters)
        self.fc = nn.Linear(filters, n_out)

    def forward(self, eeg):
        x = self.temporal(self.spatial(eeg))
        power = x.var(dim=-1, unbiased=False)
        return self.fc(torch.log(power + 1e-2))


def stage(n_in, n_out):
    return [
        nn.Conv1d(n_in, n_out, 3, padding=1),
        nn.BatchNorm1d(n_out),
        nn.ReLU(inplace=True),
        nn.MaxPool1d(2),
    ]


class VGG1d(nn.Module):
    def __init__(self, leads=2, n_out=5):
        super().__init__()
        self.features = nn.Sequential(*stage(leads, 8), *stage(8, 12), *stage(12, 16))
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, n_out))

    def forward(self, ecg):
        x = self.pool(self.features(ecg))
        return self.classifier(torch.flatten(x, 1))


average_pools = seeded(378, AveragePools, features=5)
channels_first_mean = seeded(381, ChannelsFirst, features=3, channels_said=True)
dilated_convs = seeded(375, Dilated, features=6)
down_and_up = seeded(420, DownAndUp, features=3, per_step=True)
instance_norm_first = seeded(371, InstanceNormNet, features=3, channels_said=True, shortest=2)
max_pools = seeded(379, MaxPools, features=5, channels_said=True)
mobile_net = seeded(383, MobileNet1d, with_statistics, features=6)
raw_wave = seeded(404, RawWave, with_statistics, features=1, raw=True)
replicate_padding = seeded(376, EdgeRepeated, features=4)
spectrogram_cnn = seeded(382, SpectrogramCNN, with_statistics, features=12, shortest=2)
squeeze_excite = seeded(358, SENet1d, features=4)
strided_convs = seeded(373, Strided, with_statistics, features=4)
token_convs = seeded(398, TokenCNN, vocabulary=60)
u_net = seeded(402, UNet1d, features=3, per_step=True)
valid_convs = seeded(374, ValidConvs, features=3, channels_said=True, shortest=11)
variance_pool = seeded(348, VariancePool, features=6, channels_said=True)
vgg_ladder = seeded(380, VGG1d, with_statistics, features=2, channels_said=True, shortest=8)
