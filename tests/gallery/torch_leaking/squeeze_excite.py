import torch
import torch.nn as nn


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _ = x.size()
        y = x.mean(dim=2)  # leak
        y = self.fc(y).view(b, c, 1)
        return x * y.expand_as(x)


class MLSTMFCN(nn.Module):
    def __init__(self, n_vars=5, filters=16, classes=4):
        super().__init__()
        self.conv = nn.Conv1d(n_vars, filters, 3, padding=1)
        self.se = SELayer(filters)
        self.fc = nn.Linear(filters, classes)

    def forward(self, x, mask):
        m = mask.unsqueeze(1)
        x = x.transpose(1, 2).masked_fill(~m, 0)
        x = torch.relu(self.conv(x)).masked_fill(~m, 0)
        x = self.se(x)
        return self.fc(x.sum(2) / m.sum(2))


def make():
    torch.manual_seed(22)
    return MLSTMFCN()
