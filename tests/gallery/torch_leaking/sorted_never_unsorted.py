import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class SortedEncoder(nn.Module):
    def __init__(self, n_feats=8, hidden=16, n_classes=5):
        super().__init__()
        self.lstm = nn.LSTM(n_feats, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_classes)

    def forward(self, x, x_len):
        x_len, perm = x_len.sort(0, descending=True)  # leak
        x = x[perm]
        packed = pack_padded_sequence(x, x_len.cpu(), batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(torch.cat([h[0], h[1]], dim=1))


def make():
    torch.manual_seed(35)
    return SortedEncoder()
