import torch
import torch.nn as nn
import torch.nn.functional as F


class AttentionLSTM(nn.Module):
    def __init__(self, n_in=6, hidden=12, n_out=4):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.w = nn.Linear(hidden, hidden)
        self.u = nn.Linear(hidden, 1, bias=False)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
        h, _ = self.lstm(x)
        score = self.u(torch.tanh(self.w(h)))
        alpha = F.softmax(score, dim=1)
        context = (alpha * h).sum(1)
        return self.fc(context)


def make():
    torch.manual_seed(338)
    return AttentionLSTM()
