import torch
from torch import nn


class BiGRU(nn.Module):
    def __init__(self, n_in=5, hidden=8, n_out=6, num_layers=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, num_layers, batch_first=True, dropout=0.3, bidirectional=True)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        _, h = self.gru(x)
        return self.out(torch.cat((h[-2], h[-1]), dim=1))


def make():
    torch.manual_seed(333)
    return BiGRU()
