import torch
from torch import nn


class ConvLSTM(nn.Module):
    def __init__(self, n_in=6, channels=10, hidden=12, n_out=4):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(n_in, channels, 5, stride=2, padding=2), nn.ReLU(), nn.Dropout(0.2))
        self.lstm = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        z = self.conv(x.transpose(1, 2)).transpose(1, 2)
        z, _ = self.lstm(z)
        return self.fc(z[:, -1])


def make():
    torch.manual_seed(335)
    return ConvLSTM()
