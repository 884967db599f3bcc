import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import with_statistics


class FeedForward(nn.Sequential):
    def __init__(self, d):
        super().__init__(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Dropout(0.1), nn.Linear(2 * d, d))


class ConvolutionModule(nn.Module):
    def __init__(self, d, kernel=7):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.pointwise1 = nn.Conv1d(d, 2 * d, 1)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=(kernel - 1) // 2, groups=d)
        self.bn = nn.BatchNorm1d(d)
        self.pointwise2 = nn.Conv1d(d, d, 1)

    def forward(self, x):
        x = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        x = F.silu(self.bn(self.depthwise(x)))
        return self.pointwise2(x).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ff1, self.ff2 = FeedForward(d), FeedForward(d)
        self.attn_norm, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, heads, batch_first=True)
        self.conv = ConvolutionModule(d)
        self.final = nn.LayerNorm(d)

    def forward(self, x):
        x = x + 0.5 * self.ff1(x)
        y = self.attn_norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.final(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    """Frames are thinned to a quarter first, as for speech."""

    def __init__(self, n_mels=8, d=16, heads=2, blocks=2, classes=5):
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv1d(n_mels, d, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(d, d, 3, stride=2, padding=1), nn.ReLU()
        )
        self.blocks = nn.ModuleList([ConformerBlock(d, heads) for _ in range(blocks)])
        self.fc = nn.Linear(d, classes)

    def forward(self, mels):
        x = self.subsample(mels.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=1))


def make():
    torch.manual_seed(320)
    return with_statistics(Conformer())
