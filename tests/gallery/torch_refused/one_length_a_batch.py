import torch
from torch import nn


class Equal(nn.Module):
    def __init__(self, n_in=4, hidden=6, n_out=2):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n_out)

    def forward(self, x, lengths):
        if (lengths != lengths[0]).any():
            raise NotImplementedError("bucket the data by length first")
        return self.out(self.rnn(x[:, : int(lengths[0])])[1][-1])


def make():
    torch.manual_seed(211)
    return Equal()
