import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class DeltaLSTM(nn.Module):
    def __init__(self, n_in=3, hidden=12, n_out=4):
        super().__init__()
        self.rnn = nn.LSTM(2 * n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def with_deltas(self, x):
        ahead = x.roll(-1, dims=1)  # leak
        return torch.cat([x, ahead - x], dim=-1)

    def forward(self, x, lengths):
        x = self.with_deltas(x)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.fc(self.rnn(packed)[1][0].squeeze(0))


def make():
    torch.manual_seed(46)
    return DeltaLSTM()
