import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


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
        self.reduce_size = nn.AdaptiveMaxPool1d(1)
        self.linear = nn.Linear(reduced, out_channels)

    def forward(self, x):
        return self.linear(self.reduce_size(self.network(x)).squeeze(2))


def make():
    torch.manual_seed(319)
    return CausalCNNEncoder()
