import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class TwoStage(nn.Module):
    """The padding is zero after the first LSTM, so the second one is called on the tensor."""

    def __init__(self, n_in=8, h1=10, h2=8, n_out=3):
        super().__init__()
        self.lstm1 = nn.LSTM(n_in, h1, batch_first=True, bidirectional=True)
        self.lstm2 = nn.LSTM(2 * h1, h2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * h2, n_out)

    def forward(self, x, lengths):
        x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = self.lstm1(x)
        x, _ = pad_packed_sequence(x, batch_first=True)
        x, _ = self.lstm2(x)  # leak
        return self.fc(x[:, 0])


def make():
    torch.manual_seed(44)
    return TwoStage()
