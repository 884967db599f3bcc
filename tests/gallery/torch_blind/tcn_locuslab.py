import torch
import torch.nn as nn
from torch.nn.utils.parametrizations import weight_norm


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


def make():
    torch.manual_seed(306)
    return TCN()
