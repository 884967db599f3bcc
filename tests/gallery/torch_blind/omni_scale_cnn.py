import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


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
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.hidden = nn.Linear(10, n_classes)

    def forward(self, x):
        return self.hidden(self.gap(self.net(x.mT)).squeeze(2))


def make():
    torch.manual_seed(308)
    return with_statistics(OmniScaleCNN())
