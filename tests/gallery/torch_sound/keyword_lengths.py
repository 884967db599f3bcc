import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class Keyword(nn.Module):
    """The lengths by keyword alone, behind arguments that have defaults."""

    def __init__(self, n_in=6, hidden=7, n_out=3):
        super().__init__()
        self.rnn = nn.LSTM(n_in, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n_out)

    def forward(self, x, state=None, *, scale: float = 2.0, seq_lengths):
        packed = pack_padded_sequence(x, seq_lengths.cpu(), batch_first=True, enforce_sorted=False)
        return scale * self.out(self.rnn(packed, state)[1][0][-1])


def make():
    torch.manual_seed(145)
    return Keyword()
