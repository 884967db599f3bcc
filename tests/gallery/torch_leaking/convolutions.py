"""Convolutional models that leak, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import exhibit, seeded


class ConvBlock(nn.Module):
    def __init__(self, ni, nf, ks):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(ni, nf, ks, padding=ks // 2, bias=False), nn.BatchNorm1d(nf)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.conv(x)  # leak
        return self.act(self.bn(x))


class InceptionLite(nn.Module):
    """Convolutions have no bias, so masked steps should stay at zero."""

    def __init__(self, c_in=4, nf=16, c_out=3):
        super().__init__()
        self.block1, self.block2, self.head = ConvBlock(c_in, nf, 5), ConvBlock(nf, nf, 3), nn.Linear(nf, c_out)

    def forward(self, x, mask):
        m = mask.unsqueeze(1).to(x.dtype)
        z = x.transpose(2, 1) * m
        z = self.block2(self.block1(z)) * m
        return self.head(z.sum(2) / m.sum(2).clamp(min=1))


@exhibit(operator="block2", features=4, second="mask")
def batchnorm_shifts_zeros():
    torch.manual_seed(9)
    model = InceptionLite()
    for block in (model.block1, model.block2):  # as after some epochs of training
        block.bn.running_mean.normal_(0, 0.5)
        block.bn.running_var.uniform_(0.5, 2)
        nn.init.normal_(block.bn.bias, std=0.3)
    return model


class ResBlock(nn.Module):
    def __init__(self, c_in=5, c=8, n_out=3):
        super().__init__()
        self.conv, self.out = nn.Conv1d(c_in, c, 1, bias=False), nn.Linear(c, n_out)

    def forward(self, x, mask):
        h = torch.relu(self.conv(x.masked_fill(~mask.unsqueeze(1), 0.0)))
        return self.out(h.mean(dim=-1))  # leak


def length_mask(lengths, T):
    return (torch.arange(T, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)).unsqueeze(1)


class FCN(nn.Module):
    def __init__(self, channels=(6, 16, 24, 16), kernels=(7, 5, 3), classes=5):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, k, padding=k // 2) for i, o, k in zip(channels[:-1], channels[1:], kernels, strict=True)
        )
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, x, lengths):
        x = x.transpose(1, 2)
        m = length_mask(lengths, x.shape[-1])
        x = x * m
        for conv in self.convs:
            x = torch.relu(conv(x))  # leak
        x = (x * m).sum(-1) / m.sum(-1)
        return self.fc(x)


class ResNetTS(nn.Module):
    def __init__(self, c_in=2, nf=12, c_out=4):
        super().__init__()
        self.stem, self.norm = nn.Conv1d(c_in, nf, 1), nn.InstanceNorm1d(nf, affine=True)
        self.head = nn.Conv1d(nf, c_out, 1)

    def forward(self, x, mask):
        mask = mask[:, None, :].float()
        x = x.permute(0, 2, 1)
        x = self.stem(x) * mask
        x = torch.relu(self.norm(x))  # leak
        x = self.head(x) * mask
        return x.sum(dim=-1) / mask.sum(dim=-1)


class FixedLengthCNN(nn.Module):
    """Every recording is stretched to 32 points first."""

    def __init__(self, channels: int = 3, n_classes: int = 4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(channels, 12, 5, stride=2), nn.ReLU(), nn.Conv1d(12, 12, 5, stride=2), nn.ReLU()
        )
        self.classifier = nn.Linear(12 * 5, n_classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = (x * mask.unsqueeze(2)).movedim(1, 2)
        x = F.interpolate(x, size=32, mode="linear", align_corners=False)  # leak
        return self.classifier(self.features(x).flatten(1))


class SpectrogramCNN(nn.Module):
    def __init__(self, n_bands=8, channels=6, n_classes=5):
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, channels, kernel_size=(3, 3), padding=1), nn.LeakyReLU(0.1)
        self.down, self.gap = nn.MaxPool2d(kernel_size=(1, 2)), nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, n_classes)

    def forward(self, spec, mask):
        m = mask.unsqueeze(1).unsqueeze(-1)
        x = spec.unsqueeze(1) * m
        x = self.down(self.act(self.conv(x))) * m
        x = self.gap(x)  # leak
        return self.fc(torch.flatten(x, 1))


class ResidualBlock(nn.Module):
    def __init__(self, dim, dilation):
        super().__init__()
        self.conv_dilated = nn.Conv1d(dim, dim, 3, padding="same", dilation=dilation)
        self.conv_out = nn.Conv1d(dim, dim, 3, padding="same")

    def forward(self, x):
        out = F.relu(self.conv_dilated(x))
        out = self.conv_out(out)  # leak
        return x + out


class SingleStageTCN(nn.Module):
    def __init__(self, features=8, dim=16, layers=3, classes=5):
        super().__init__()
        self.conv_in = nn.Conv1d(features, dim, 1)
        self.blocks = nn.ModuleList([ResidualBlock(dim, 2**i) for i in range(layers)])
        self.conv_cls = nn.Conv1d(dim, classes, 1)

    def forward(self, x, mask):
        mask = mask.unsqueeze(1).float()
        out = self.conv_in(x.permute(0, 2, 1)) * mask
        for block in self.blocks:
            out = block(out) * mask
        return (self.conv_cls(out) * mask).permute(0, 2, 1)


channels_first_global_mean = seeded(60, ResBlock, operator="mean", features=5, second="mask", channels_said=True)
conv_without_remask = seeded(8, FCN, operator="convs.1", features=6)
instance_norm = seeded(15, ResNetTS, operator=("instance_norm", "norm"), features=2, second="mask", shortest=2)
resampled = seeded(39, FixedLengthCNN, operator=("interpolate", "upsample"), features=3, second="mask")
spectrogram_cnn = seeded(49, SpectrogramCNN, operator=("pool", "gap"), features=8, second="mask")
tcn_same_padding = seeded(30, SingleStageTCN, operator="blocks.0.conv_out", features=8, second="mask", per_step=True)
