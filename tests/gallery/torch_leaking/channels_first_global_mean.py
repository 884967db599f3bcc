import torch
from torch import nn


class ResBlock(nn.Module):
    def __init__(self, c_in=5, c=8, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(c_in, c, 1, bias=False)
        self.out = nn.Linear(c, n_out)

    def forward(self, x, mask):
        h = torch.relu(self.conv(x.masked_fill(~mask.unsqueeze(1), 0.0)))
        return self.out(h.mean(dim=-1))  # leak


def make():
    torch.manual_seed(60)
    return ResBlock()
