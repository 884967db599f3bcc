import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class OldStyleLSTM(nn.Module):
    """The collate function sorts each batch by length, longest first."""

    def __init__(self, n_in=6, hidden=12, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(h[-1])


def make():
    torch.manual_seed(200)
    return OldStyleLSTM()
