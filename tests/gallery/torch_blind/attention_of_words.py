import torch
from torch import nn


class WordAttention(nn.Module):
    def __init__(self, vocab=60, d=8, h=6, classes=5):
        super().__init__()
        self.lookup = nn.Embedding(vocab, d)
        self.gru = nn.GRU(d, h, bidirectional=True, batch_first=True)
        self.weight = nn.Linear(2 * h, 2 * h)
        self.context = nn.Parameter(torch.randn(2 * h))
        self.fc = nn.Linear(2 * h, classes)

    def forward(self, words):
        f, _ = self.gru(self.lookup(words))
        u = torch.tanh(self.weight(f))
        a = torch.matmul(u, self.context).softmax(dim=1).unsqueeze(-1)
        return self.fc(torch.sum(f * a, dim=1))


def make():
    torch.manual_seed(403)
    return WordAttention()
