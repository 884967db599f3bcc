import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class ProjectedLSTM(nn.Module):
    def __init__(self, n_in=6, hidden=16, proj=8, n_out=4):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, proj_size=proj, batch_first=True)
        self.fc = nn.Linear(proj, n_out)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.fc(self.lstm(packed)[1][0][-1])


def make():
    torch.manual_seed(132)
    return ProjectedLSTM()
