import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import weight_norm


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


def make():
    torch.manual_seed(113)
    return TCN()
