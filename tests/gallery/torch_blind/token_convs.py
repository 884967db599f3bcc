import torch
from torch import nn


class TokenCNN(nn.Module):
    def __init__(self, vocab=60, d=10, c=12, n_out=4):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.conv = nn.Sequential(nn.Conv1d(d, c, 3, padding=1), nn.ReLU(), nn.Conv1d(c, c, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(c, n_out)

    def forward(self, tokens):
        return self.fc(self.conv(self.emb(tokens).transpose(1, 2)).max(-1)[0])


def make():
    torch.manual_seed(398)
    return TokenCNN()
