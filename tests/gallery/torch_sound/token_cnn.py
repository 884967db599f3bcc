import torch
import torch.nn.functional as F
from torch import nn


class KimCNN(nn.Module):
    """Convolutions over words, max over time; windows that touch padding do not count."""

    def __init__(self, vocab=60, dim=10, filters=8, sizes=(1, 3, 5), labels=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.convs = nn.ModuleList([nn.Conv1d(dim, filters, k, padding=k // 2) for k in sizes])
        self.fc = nn.Linear(filters * len(sizes), labels)

    def forward(self, tokens, mask):
        x = self.embed(tokens)
        x = (x * mask.unsqueeze(-1)).transpose(1, 2)
        hidden = mask.unsqueeze(1).logical_not()
        pooled = [F.relu(conv(x)).masked_fill(hidden, 0.0).max(dim=-1).values for conv in self.convs]
        return self.fc(torch.cat(pooled, dim=1))


def make():
    torch.manual_seed(122)
    return KimCNN()
