import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class LSTMFCN(nn.Module):
    def __init__(self, n_vars=4, cells=8, n_classes=3):
        super().__init__()
        self.lstm = nn.LSTM(n_vars, cells, batch_first=True)
        self.dropout = nn.Dropout(0.8)
        self.conv1, self.bn1 = nn.Conv1d(n_vars, 8, 8, padding="same"), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 16, 5, padding="same"), nn.BatchNorm1d(16)
        self.conv3, self.bn3 = nn.Conv1d(16, 8, 3, padding="same"), nn.BatchNorm1d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(cells + 8, n_classes)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        h = self.dropout(h[-1])
        c = x.transpose(1, 2)
        c = self.relu(self.bn1(self.conv1(c)))
        c = self.relu(self.bn2(self.conv2(c)))
        c = self.relu(self.bn3(self.conv3(c)))
        c = torch.mean(c, 2)
        return self.fc(torch.cat((h, c), dim=1))


def make():
    torch.manual_seed(304)
    return with_statistics(LSTMFCN())
