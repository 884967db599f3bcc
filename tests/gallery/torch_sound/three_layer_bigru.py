import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class AttentiveGRU(nn.Module):
    def __init__(self, n_in=7, hid=10, n_out=3, layers=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hid, layers, batch_first=True, bidirectional=True, dropout=0.2)
        self.w = nn.Linear(2 * hid, 2 * hid)
        self.u = nn.Linear(2 * hid, 1, bias=False)
        self.fc = nn.Linear(2 * hid, n_out)

    def forward(self, x, seq_len):
        T = x.size(1)
        h = pack_padded_sequence(x, seq_len.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = self.rnn(h)
        h, _ = pad_packed_sequence(h, batch_first=True, total_length=T)
        e = self.u(torch.tanh(self.w(h))).squeeze(2)
        e = e.masked_fill(torch.arange(T)[None] >= seq_len[:, None], float("-inf"))
        a = F.softmax(e, dim=1)
        return self.fc(torch.einsum("bt,bth->bh", a, h))


def make():
    torch.manual_seed(103)
    return AttentiveGRU()
