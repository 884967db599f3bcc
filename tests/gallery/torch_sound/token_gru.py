import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class TextGRU(nn.Module):
    def __init__(self, vocab_size=80, emb=12, hidden=16, classes=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, emb, padding_idx=0)
        self.gru = nn.GRU(emb, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, text, text_lengths):
        e = self.dropout(self.embedding(text))
        e = pack_padded_sequence(e, text_lengths.to("cpu"), batch_first=True, enforce_sorted=False)
        _, hidden = self.gru(e)
        hidden = self.dropout(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1))
        return self.fc(hidden)


def make():
    torch.manual_seed(121)
    return TextGRU()
