import torch
from torch import nn


class TwoRnnsPooled(nn.Module):
    """An LSTM and a GRU over words, with an attention by hand, the last states, a mean and a maximum."""

    def __init__(self, vocab=50, dim=12, hidden=8, n_out=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.dropout = nn.Dropout2d(0.3)
        self.lstm = nn.LSTM(dim, hidden, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(2 * hidden, hidden, bidirectional=True, batch_first=True)
        self.weight = nn.Parameter(torch.randn(2 * hidden, 1) * 0.3)
        self.bias = nn.Parameter(torch.zeros(1))
        self.out = nn.Linear(8 * hidden, n_out)

    def forward(self, tokens):
        h = self.embedding(tokens)
        h = self.dropout(h.unsqueeze(2).permute(0, 3, 2, 1)).permute(0, 3, 2, 1).squeeze(2)
        first, _ = self.lstm(h)
        second, last = self.gru(first)
        last = last.permute(1, 0, 2).reshape(tokens.size(0), -1)
        scores = torch.mm(first.contiguous().view(-1, first.size(2)), self.weight).view(-1, first.size(1))
        shares = torch.exp(torch.tanh(scores + self.bias))
        shares = shares / (shares.sum(1, keepdim=True) + 1e-10)
        attended = (first * shares.unsqueeze(-1)).sum(1)
        return self.out(torch.cat([attended, last, second.mean(1), second.max(1)[0]], 1))


def make():
    torch.manual_seed(507)
    return TwoRnnsPooled()
