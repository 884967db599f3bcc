import torch
from torch import nn


class BiLSTMTagger(nn.Module):
    def __init__(self, vocab=40, emb=8, hidden=10, tags=5):
        super().__init__()
        self.emb = nn.Embedding(vocab, emb)
        self.lstm = nn.LSTM(emb, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(hidden * 2, tags)

    def forward(self, sentence):
        out, _ = self.lstm(self.emb(sentence))
        return self.hidden2tag(out)


def make():
    torch.manual_seed(337)
    return BiLSTMTagger()
