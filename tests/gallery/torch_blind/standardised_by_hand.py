import torch
from torch import nn


class Standardised(nn.Module):
    def __init__(self, n_in=4, hidden=10, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
        mu = x.mean(dim=1, keepdim=True)
        sd = ((x - mu) ** 2).mean(dim=1, keepdim=True).sqrt()
        x = (x - mu) / (sd + 1e-1)
        return self.fc(self.lstm(x)[1][0][-1])


def make():
    torch.manual_seed(361)
    return Standardised()
