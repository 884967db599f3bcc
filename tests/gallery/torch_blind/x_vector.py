import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class TDNN(nn.Module):
    def __init__(self, n_in, n_out, context, dilation=1):
        super().__init__()
        self.kernel = nn.Conv1d(n_in, n_out, context, dilation=dilation)
        self.bn = nn.BatchNorm1d(n_out)

    def forward(self, x):
        return self.bn(torch.relu(self.kernel(x)))


class XVector(nn.Module):
    """Speaker embeddings: frames see a context of 15, then the mean and deviation of all frames."""

    def __init__(self, n_mels=8, dim=12, speakers=6):
        super().__init__()
        self.frame1 = TDNN(n_mels, dim, 5)
        self.frame2 = TDNN(dim, dim, 3, dilation=2)
        self.frame3 = TDNN(dim, dim, 3, dilation=3)
        self.frame4 = TDNN(dim, dim, 1)
        self.frame5 = TDNN(dim, 2 * dim, 1)
        self.segment6 = nn.Linear(4 * dim, dim)
        self.output = nn.Linear(dim, speakers)

    def forward(self, mels):
        x = mels.transpose(1, 2)
        for frame in (self.frame1, self.frame2, self.frame3, self.frame4, self.frame5):
            x = frame(x)
        stats = torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)
        return self.output(torch.relu(self.segment6(stats)))


def make():
    torch.manual_seed(314)
    return with_statistics(XVector())
