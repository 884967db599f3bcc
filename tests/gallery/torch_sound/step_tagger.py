import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class SleepStager(nn.Module):
    """One stage per epoch of a night."""

    def __init__(self, feats=7, hidden=14, stages=5):
        super().__init__()
        self.rnn = nn.LSTM(feats, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.head = nn.Linear(2 * hidden, stages)

    def forward(self, epochs, n_epochs_lengths):
        packed = pack_padded_sequence(epochs, n_epochs_lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = self.rnn(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=epochs.size(1))
        return self.head(out)


def make():
    torch.manual_seed(118)
    return SleepStager()
