import torch
import torch.nn.functional as F
from torch import nn


class ConvGRU(nn.Module):
    def __init__(self, c_in=3, c=16, n_classes=4):
        super().__init__()
        self.conv1 = nn.Conv1d(c_in, c, kernel_size=5, padding=2)
        self.conv2 = nn.Conv1d(c, c, kernel_size=3, padding=1)
        self.gru = nn.GRU(c, c, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * c, n_classes)

    def forward(self, x, lens):
        z = x.permute(0, 2, 1)
        z = F.relu(self.conv1(z))  # leak
        z = F.relu(self.conv2(z))
        z = z.permute(0, 2, 1)
        z = nn.utils.rnn.pack_padded_sequence(z, lens.cpu(), batch_first=True, enforce_sorted=False)
        _, h = self.gru(z)
        return self.fc(torch.cat([h[-2], h[-1]], dim=1))


def make():
    torch.manual_seed(7)
    return ConvGRU()
