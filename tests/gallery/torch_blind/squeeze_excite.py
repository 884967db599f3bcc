import torch
import torch.nn as nn


class SEBlock(nn.Module):
    def __init__(self, c, r=2):
        super().__init__()
        self.excite = nn.Sequential(nn.Linear(c, c // r), nn.ReLU(inplace=True), nn.Linear(c // r, c), nn.Sigmoid())

    def forward(self, x):
        b, c, _ = x.size()
        return x * self.excite(x.mean(-1)).view(b, c, 1)


class SENet1d(nn.Module):
    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.stem = nn.Conv1d(n_in, c, 5, padding=2)
        self.se1, self.conv, self.se2 = SEBlock(c), nn.Conv1d(c, c, 3, padding=1), SEBlock(c)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = self.se1(torch.relu(self.stem(x.transpose(1, 2))))
        x = self.se2(torch.relu(self.conv(x)) + x)
        return self.fc(x.max(-1)[0])


def make():
    torch.manual_seed(358)
    return SENet1d()
