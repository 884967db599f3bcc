import torch
import torch.nn as nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.proj = nn.Linear(hidden, hidden)
        self.context = nn.Parameter(torch.randn(hidden))

    def forward(self, h, mask):
        u = torch.tanh(self.proj(h))
        att = F.softmax(u @ self.context, dim=1)  # leak
        att = att * mask.float()
        return (h * att.unsqueeze(-1)).sum(1)


class HAN(nn.Module):
    """The word level of a hierarchical attention network."""

    def __init__(self, features=7, hidden=16, classes=5):
        super().__init__()
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.attention = Attention(hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x, mask):
        h, _ = self.rnn(x)
        return self.out(self.attention(h, mask))


def make():
    torch.manual_seed(4)
    return HAN()
