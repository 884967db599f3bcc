import torch
from torch import nn


class LastRelevant(nn.Module):
    def __init__(self, n_in=4, n_hid=16, n_out=3):
        super().__init__()
        self.rnn = nn.LSTM(n_in, n_hid, batch_first=True)
        self.fc = nn.Linear(n_hid, n_out)

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        rows = torch.arange(x.size(0))
        last = out[rows, lengths.clamp(max=x.size(1) - 1)]  # leak
        return self.fc(last)


def make():
    torch.manual_seed(32)
    return LastRelevant()
