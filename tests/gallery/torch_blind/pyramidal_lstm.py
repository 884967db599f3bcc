import torch
from torch import nn


class PyramidLayer(nn.Module):
    """Joins each two neighbouring steps, a last one without a neighbour is dropped, and reads on."""

    def __init__(self, n_in, hidden):
        super().__init__()
        self.blstm = nn.LSTM(2 * n_in, hidden, batch_first=True, bidirectional=True)

    def forward(self, x):
        b, t, f = x.shape
        pairs = x[:, : t // 2 * 2].reshape(b, t // 2, 2 * f)
        return self.blstm(pairs)[0]


class Listener(nn.Module):
    def __init__(self, n_mels=6, hidden=5, n_out=4):
        super().__init__()
        self.bottom = nn.LSTM(n_mels, hidden, batch_first=True, bidirectional=True)
        self.pyramid = nn.Sequential(PyramidLayer(2 * hidden, hidden), PyramidLayer(2 * hidden, hidden))
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, mels):
        return self.fc(self.pyramid(self.bottom(mels)[0]).mean(dim=1))


def make():
    torch.manual_seed(410)
    return Listener()
