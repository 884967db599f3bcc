import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Both(nn.Module):
    def __init__(self, n_in=5, hidden=6, n_out=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * hidden, 1)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, x, x_lengths, x_mask):
        packed = pack_padded_sequence(x, x_lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.size(1))
        weights = self.score(h).squeeze(-1).masked_fill(~x_mask, float("-inf")).softmax(1)
        return self.out((weights.unsqueeze(-1) * h).sum(1))


def make():
    torch.manual_seed(143)
    return Both()
