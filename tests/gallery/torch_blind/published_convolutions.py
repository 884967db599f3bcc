"""Published architectures: convolutional models that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.gallery.torch_models import network, seeded, with_statistics


class CausalBlock(nn.Module):
    def __init__(self, n_in, n_out, kernel_size, dilation, final=False):
        super().__init__()
        reach = (kernel_size - 1) * dilation
        self.pad = nn.ConstantPad1d((reach, 0), 0.0)
        self.conv1 = weight_norm(nn.Conv1d(n_in, n_out, kernel_size, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_out, n_out, kernel_size, dilation=dilation))
        self.act = nn.LeakyReLU()
        self.updown = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None
        self.final = nn.LeakyReLU() if final else None

    def forward(self, x):
        out = self.act(self.conv1(self.pad(x)))
        out = self.act(self.conv2(self.pad(out)))
        out = out + (x if self.updown is None else self.updown(x))
        return out if self.final is None else self.final(out)


class CausalCNNEncoder(nn.Module):
    """Unsupervised representations of time series: dilated causal blocks, squeezed by a maximum over time."""

    def __init__(self, in_channels=3, channels=8, depth=3, reduced=12, out_channels=6):
        super().__init__()
        blocks = [CausalBlock(in_channels if i == 0 else channels, channels, 3, 2**i) for i in range(depth)]
        self.network = nn.Sequential(*blocks, CausalBlock(channels, reduced, 3, 2**depth, final=True))
        self.reduce_size, self.linear = nn.AdaptiveMaxPool1d(1), nn.Linear(reduced, out_channels)

    def forward(self, x):
        return self.linear(self.reduce_size(self.network(x)).squeeze(2))


class DisjointCnn(nn.Module):
    """Time and channels apart: a convolution along the steps, then one across all channels."""

    def __init__(self, channels=4, filters=8, n_out=3):
        super().__init__()
        self.temporal = nn.Conv2d(1, filters, (1, 8), padding=(0, 4))
        self.spatial = nn.Conv2d(filters, filters, (channels, 1))
        self.pool, self.fc = nn.MaxPool2d((1, 3), (1, 2), padding=(0, 1)), nn.Linear(filters, n_out)

    def forward(self, x):
        h = F.elu(self.spatial(F.elu(self.temporal(x.transpose(1, 2).unsqueeze(1)))))
        return self.fc(self.pool(h).squeeze(2).mean(dim=2))


class FCN(nn.Module):
    def __init__(self, c_in=4, layers=(8, 16, 8), kernels=(8, 5, 3), c_out=3):
        super().__init__()
        sizes = (c_in, *layers)
        self.convs = nn.Sequential()
        for i, k in enumerate(kernels):
            self.convs.append(nn.Conv1d(sizes[i], sizes[i + 1], k, padding="same", bias=False))
            self.convs.append(nn.BatchNorm1d(sizes[i + 1]))
            self.convs.append(nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(layers[-1], c_out)

    def forward(self, x):
        return self.head(self.pool(self.convs(x.transpose(1, 2))).flatten(1))


class GeM(nn.Module):
    def __init__(self, p=3.0, eps=1e-3):
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(p)), eps

    def forward(self, x):
        return x.clamp(min=self.eps).pow(self.p).mean(dim=-1).pow(1.0 / self.p)


class GeneralisedMean(nn.Module):
    def __init__(self, n_in=3, c=8, n_out=4):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv1d(n_in, c, 5, padding=2), GeM(), nn.Linear(c, n_out)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.conv(x))))


class InceptionModule(nn.Module):
    def __init__(self, ni, nf, ks=(39, 19, 9), bottleneck=4):
        super().__init__()
        self.bottleneck = nn.Conv1d(ni, bottleneck, 1, bias=False) if ni > 1 else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv1d(bottleneck if ni > 1 else 1, nf, k, padding=k // 2, bias=False) for k in ks
        )
        self.maxconvpool = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(ni, nf, 1, bias=False))
        self.bn, self.act = nn.BatchNorm1d(nf * 4), nn.ReLU()

    def forward(self, x):
        squeezed = self.bottleneck(x)
        branches = [conv(squeezed) for conv in self.convs] + [self.maxconvpool(x)]
        return self.act(self.bn(torch.cat(branches, dim=1)))


class InceptionBlock(nn.Module):
    def __init__(self, ni, nf=4, depth=6):
        super().__init__()
        self.inception = nn.ModuleList(InceptionModule(ni if d == 0 else nf * 4, nf) for d in range(depth))
        self.shortcut = nn.ModuleList(
            nn.Sequential(nn.Conv1d(n, nf * 4, 1, bias=False), nn.BatchNorm1d(nf * 4)) for n in (ni, nf * 4)
        )
        self.act = nn.ReLU()

    def forward(self, x):
        res = x
        for d, module in enumerate(self.inception):
            x = module(x)
            if d % 3 == 2:
                x = res = self.act(x + self.shortcut[d // 3](res))
        return x


class InceptionTime(nn.Module):
    def __init__(self, c_in=3, c_out=4, nf=4):
        super().__init__()
        self.inceptionblock, self.gap = InceptionBlock(c_in, nf), nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(nf * 4, c_out)

    def forward(self, x):
        x = self.gap(self.inceptionblock(x)).squeeze(-1)
        return self.fc(x)


class OmniScaleLayer(nn.Module):
    """One convolution for each prime kernel, all in parallel."""

    def __init__(self, n_in, n_out, kernels):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.ConstantPad1d(((k - 1) // 2, k // 2), 0.0), nn.Conv1d(n_in, n_out, k)) for k in kernels
        )
        self.bn = nn.BatchNorm1d(n_out * len(kernels))

    def forward(self, x):
        return torch.relu(self.bn(torch.cat([branch(x) for branch in self.branches], dim=1)))


class OmniScaleCNN(nn.Module):
    def __init__(self, n_in=3, n_classes=4, kernels=(1, 2, 3, 5, 7, 11)):
        super().__init__()
        wide = 3 * len(kernels)
        self.net = nn.Sequential(
            OmniScaleLayer(n_in, 3, kernels), OmniScaleLayer(wide, 3, kernels), OmniScaleLayer(wide, 5, (1, 2))
        )
        self.gap, self.hidden = nn.AdaptiveAvgPool1d(1), nn.Linear(10, n_classes)

    def forward(self, x):
        return self.hidden(self.gap(self.net(x.mT)).squeeze(2))


def block(ni, nf, k, act):
    return nn.Sequential(nn.Conv1d(ni, nf, k, padding="same"), nn.BatchNorm1d(nf), act)


class ResidualStart(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        self.block1, self.block2 = block(ni, nf, 7, nn.ReLU()), block(nf, nf, 5, nn.ReLU())
        self.block3, self.shortcut = block(nf, nf, 3, nn.Identity()), block(ni, nf, 1, nn.Identity())

    def forward(self, x):
        return (self.block3(self.block2(self.block1(x))) + self.shortcut(x)).relu()


class ResCNN(nn.Module):
    def __init__(self, c_in=5, c_out=3, nf=8):
        super().__init__()
        self.block, self.block2 = ResidualStart(c_in, nf), block(nf, nf * 2, 3, nn.LeakyReLU(0.2))
        self.block3, self.block4 = block(nf * 2, nf * 2, 3, nn.PReLU()), block(nf * 2, nf, 3, nn.ELU(0.3))
        self.gap, self.flatten, self.lin = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(nf, c_out)

    def forward(self, x):
        x = self.block4(self.block3(self.block2(self.block(x))))
        return self.lin(self.flatten(self.gap(x)))


def conv_bn(n_in, n_out, kernel):
    return nn.Sequential(nn.Conv1d(n_in, n_out, kernel, padding="same"), nn.BatchNorm1d(n_out))


class ResNetBlock(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv_bn(n_in, n_out, 8), conv_bn(n_out, n_out, 5), conv_bn(n_out, n_out, 3)
        self.shortcut = nn.BatchNorm1d(n_out) if n_in == n_out else conv_bn(n_in, n_out, 1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y))
        return F.relu(self.conv3(y) + self.shortcut(x))


@network(
    302,
    lambda: dict(
        blocks=nn.Sequential(ResNetBlock(5, 8), ResNetBlock(8, 16), ResNetBlock(16, 16)), classifier=nn.Linear(16, 4)
    ),
    with_statistics,
    features=5,
)
def resnet_wang(self, x):
    """`[batch, time, variables]` in; the convolutions want the time last."""
    features = self.blocks(x.permute(0, 2, 1))
    return self.classifier(features.mean(dim=2))


class Residual(nn.Module):
    """A strided block whose shortcut is a pool, filled up with channels of zeros, as for ECG."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.first, self.norm = nn.Conv1d(n_in, n_out, 7, stride, 3), nn.BatchNorm1d(n_out)
        self.second, self.pool = nn.Conv1d(n_out, n_out, 7, 1, 3), nn.MaxPool1d(stride, stride, ceil_mode=True)
        self.grows = n_out > n_in

    def forward(self, x):
        shortcut = self.pool(x)
        if self.grows:
            shortcut = torch.cat([shortcut, torch.zeros_like(shortcut)], 1)
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + shortcut)


class SubsampledShortcuts(nn.Module):
    def __init__(self, leads=3, n_out=4):
        super().__init__()
        self.stem = nn.Conv1d(leads, 8, 15, padding=7)
        self.blocks = nn.Sequential(Residual(8, 8, 2), Residual(8, 16, 2), Residual(16, 16, 2))
        self.head = nn.Linear(16, n_out)

    def forward(self, ecg):
        return self.head(self.blocks(self.stem(ecg)).mean(dim=2))


class Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation, dropout=0.2):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        layers = []
        for n in (n_inputs, n_outputs):
            conv = nn.Conv1d(n, n_outputs, kernel_size, padding=padding, dilation=dilation)
            layers += [weight_norm(conv), Chomp1d(padding), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None
        self.relu = nn.ReLU()

    def forward(self, x):
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(self.net(x) + res)


class TCN(nn.Module):
    def __init__(self, input_size=3, output_size=5, num_channels=(8, 8, 8, 8), kernel_size=3):
        super().__init__()
        sizes = (input_size, *num_channels)
        self.tcn = nn.Sequential(
            *(TemporalBlock(sizes[i], sizes[i + 1], kernel_size, 2**i) for i in range(len(num_channels)))
        )
        self.linear = nn.Linear(num_channels[-1], output_size)

    def forward(self, inputs):
        """Inputs have to have dimension (N, C_in, L_in)."""
        y1 = self.tcn(inputs)
        return self.linear(y1[:, :, -1])


class TextCNN(nn.Module):
    """Convolutions of three widths over word vectors, the largest answer of each filter."""

    def __init__(self, vocab_size=60, embed_dim=10, num_filters=6, sizes=(3, 4, 5), num_classes=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.convs = nn.ModuleList([nn.Conv2d(1, num_filters, (k, embed_dim)) for k in sizes])
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(len(sizes) * num_filters, num_classes)

    def forward(self, tokens):
        x = self.embedding(tokens).unsqueeze(1)
        maps = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        pooled = [m.max(dim=2).values for m in maps]
        return self.fc(self.dropout(torch.cat(pooled, dim=1)))


class GatedResidual(nn.Module):
    def __init__(self, channels, skips, dilation):
        super().__init__()
        self.reach, self.filter = dilation, nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skips, 1)

    def forward(self, x):
        past = F.pad(x, (self.reach, 0))
        z = torch.tanh(self.filter(past)) * torch.sigmoid(self.gate(past))
        return x + self.residual(z), self.skip(z)


class WaveNetClassifier(nn.Module):
    """A stack of gated causal convolutions; all skips added, then averaged over the recording."""

    def __init__(self, n_in=2, channels=8, skips=10, layers=6, classes=4):
        super().__init__()
        self.start = nn.Conv1d(n_in, channels, 1)
        self.stack = nn.ModuleList([GatedResidual(channels, skips, 2**i) for i in range(layers)])
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(skips, skips, 1), nn.ReLU(), nn.Conv1d(skips, classes, 1))

    def forward(self, wave):
        x, total = self.start(wave), 0
        for layer in self.stack:
            x, skip = layer(x)
            total = total + skip
        return self.end(total).mean(-1)


class TDNN(nn.Module):
    def __init__(self, n_in, n_out, context, dilation=1):
        super().__init__()
        self.kernel, self.bn = nn.Conv1d(n_in, n_out, context, dilation=dilation), nn.BatchNorm1d(n_out)

    def forward(self, x):
        return self.bn(torch.relu(self.kernel(x)))


class XVector(nn.Module):
    """Speaker embeddings: frames see a context of 15, then the mean and deviation of all frames."""

    def __init__(self, n_mels=8, dim=12, speakers=6):
        super().__init__()
        self.frame1, self.frame2 = TDNN(n_mels, dim, 5), TDNN(dim, dim, 3, dilation=2)
        self.frame3, self.frame4 = TDNN(dim, dim, 3, dilation=3), TDNN(dim, dim, 1)
        self.frame5, self.segment6 = TDNN(dim, 2 * dim, 1), nn.Linear(4 * dim, dim)
        self.output = nn.Linear(dim, speakers)

    def forward(self, mels):
        x = mels.transpose(1, 2)
        for frame in (self.frame1, self.frame2, self.frame3, self.frame4, self.frame5):
            x = frame(x)
        stats = torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)
        return self.output(torch.relu(self.segment6(stats)))


class SeparableConv1d(nn.Module):
    def __init__(self, ni, nf, ks):
        super().__init__()
        self.depthwise = nn.Conv1d(ni, ni, ks, padding=ks // 2, groups=ni, bias=False)
        self.pointwise = nn.Conv1d(ni, nf, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class XceptionModule(nn.Module):
    def __init__(self, ni, nf, kss=(39, 19, 9)):
        super().__init__()
        self.bottleneck = nn.Conv1d(ni, nf, 1, bias=False)
        self.conv_layers = nn.ModuleList([SeparableConv1d(nf, nf, ks) for ks in kss])
        self.mp_conv = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(ni, nf, 1, bias=False))

    def forward(self, x):
        z = self.bottleneck(x)
        return torch.concat([layer(z) for layer in self.conv_layers] + [self.mp_conv(x)], 1)


class XceptionBlock(nn.Module):
    def __init__(self, ni, nf):
        super().__init__()
        sizes = [ni, 4 * nf, 8 * nf, 16 * nf]
        self.xception = nn.ModuleList([XceptionModule(sizes[i], sizes[i + 1] // 4) for i in range(3)])
        self.shortcut, self.act = nn.Sequential(nn.Conv1d(ni, sizes[3], 1), nn.BatchNorm1d(sizes[3])), nn.ReLU()

    def forward(self, x):
        out = x
        for module in self.xception:
            out = module(out)
        return self.act(out + self.shortcut(x))


class XceptionTime(nn.Module):
    def __init__(self, c_in=4, c_out=6, nf=2):
        super().__init__()
        self.block = XceptionBlock(c_in, nf)
        self.head = nn.Sequential(
            nn.Conv1d(16 * nf, 8 * nf, 1),
            nn.BatchNorm1d(8 * nf),
            nn.ReLU(),
            nn.Conv1d(8 * nf, c_out, 1),
            nn.BatchNorm1d(c_out),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
        )

    def forward(self, x):
        return self.head(self.block(x.transpose(2, 1))).squeeze(-1)


@network(
    311,
    lambda: dict(
        conv2d=nn.Sequential(
            nn.Conv2d(1, 6, (1, 9), padding="same"), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.ReLU()
        ),
        conv1d=nn.Sequential(
            nn.Conv1d(5, 6, 9, padding="same"), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 1, 1), nn.ReLU()
        ),
        mix=nn.Sequential(nn.Conv1d(6, 6, 9, padding="same"), nn.BatchNorm1d(6), nn.ReLU()),
        gap=nn.AdaptiveAvgPool1d(1),
        fc=nn.Linear(6, 4),
    ),
    with_statistics,
    features=5,
    channels_said=True,
)
def xcm(self, x):
    """Explainable: one branch keeps the variables apart (2d), the other mixes them (1d)."""
    apart = self.conv2d(x.unsqueeze(1)).squeeze(1)
    mixed = self.conv1d(x)
    out = self.mix(torch.cat((apart, mixed), dim=1))
    return self.fc(self.gap(out).squeeze(-1))


causal_encoder = seeded(319, CausalCNNEncoder, features=3, channels_said=True)
disjoint_cnn = seeded(510, DisjointCnn, features=4)
fcn_wang = seeded(303, FCN, with_statistics, features=4)
generalised_mean = seeded(415, GeneralisedMean, features=3, channels_said=True)
inception_time = seeded(301, InceptionTime, with_statistics, features=3, channels_said=True)
omni_scale_cnn = seeded(308, OmniScaleCNN, with_statistics, features=3)
res_cnn = seeded(309, ResCNN, with_statistics, features=5, channels_said=True)
subsampled_shortcuts = seeded(511, SubsampledShortcuts, features=3, channels_said=True)
tcn_locuslab = seeded(306, TCN, features=3, channels_said=True)
text_cnn = seeded(318, TextCNN, vocabulary=60, shortest=5)
wave_net = seeded(316, WaveNetClassifier, features=2, channels_said=True)
x_vector = seeded(314, XVector, with_statistics, features=8, shortest=16)
xception_time = seeded(307, XceptionTime, with_statistics, features=4)
