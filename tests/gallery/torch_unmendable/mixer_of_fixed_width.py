import torch
from torch import nn


class MixerBlock(nn.Module):
    def __init__(self, steps, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.tokens, self.channels = nn.Linear(steps, steps), nn.Linear(d, d)

    def forward(self, x):
        x = x + torch.relu(self.tokens(self.norm1(x).transpose(1, 2))).transpose(1, 2)
        return x + torch.relu(self.channels(self.norm2(x)))


class Mixer(nn.Module):
    def __init__(self, n_in=5, d=8, steps=24, n_out=3):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.blocks = nn.Sequential(MixerBlock(steps, d), MixerBlock(steps, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        return self.fc(self.blocks(self.inp(x)).mean(1))


def make():
    torch.manual_seed(453)
    return Mixer()
