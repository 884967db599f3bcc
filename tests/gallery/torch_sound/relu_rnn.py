import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class ReluRNN(nn.Module):
    def __init__(self, n_in=4, hidden=12, n_out=2):
        super().__init__()
        self.rnn = nn.RNN(n_in, hidden, 2, nonlinearity="relu", batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=-1.0)
        out[torch.arange(out.size(1))[None, :] >= lengths[:, None]] = 0
        return self.fc(out.sum(1) / lengths.unsqueeze(-1))


def make():
    torch.manual_seed(137)
    return ReluRNN()
