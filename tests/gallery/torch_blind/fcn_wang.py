import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class FCN(nn.Module):
    def __init__(self, c_in=4, layers=(8, 16, 8), kernels=(8, 5, 3), c_out=3):
        super().__init__()
        sizes = (c_in, *layers)
        self.convs = nn.Sequential()
        for i, k in enumerate(kernels):
            self.convs.append(nn.Conv1d(sizes[i], sizes[i + 1], k, padding="same", bias=False))
            self.convs.append(nn.BatchNorm1d(sizes[i + 1]))
            self.convs.append(nn.ReLU())
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(layers[-1], c_out)

    def forward(self, x):
        return self.head(self.pool(self.convs(x.transpose(1, 2))).flatten(1))


def make():
    torch.manual_seed(303)
    return with_statistics(FCN())
