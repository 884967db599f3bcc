import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class PackedBiLSTM(nn.Module):
    def __init__(self, n_features=12, hidden=16, n_classes=9):
        super().__init__()
        self.lstm = nn.LSTM(n_features, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_classes)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h_n, _) = self.lstm(packed)
        return self.fc(torch.cat([h_n[-2], h_n[-1]], dim=1))


def make():
    torch.manual_seed(100)
    return PackedBiLSTM()
