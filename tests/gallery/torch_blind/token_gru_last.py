import torch
from torch import nn


class Sentiment(nn.Module):
    def __init__(self, vocab=50, dim=8, hidden=12, classes=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, text):
        _, hidden = self.gru(self.dropout(self.embedding(text)))
        return self.fc(hidden.squeeze(0))


def make():
    torch.manual_seed(340)
    return Sentiment()
