import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n_features=6, hidden=10, n_classes=3):
        super().__init__()
        self.lstm = nn.LSTM(n_features, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_classes)

    def forward(self, x):
        out, _ = self.lstm(x)
        out = out[:, -1, :]
        return self.fc(out)


def make():
    torch.manual_seed(330)
    return Net()
