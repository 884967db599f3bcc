import torch
import torch.nn as nn


class MaskedSE(nn.Module):
    def __init__(self, channels, r=4):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // r)
        self.fc2 = nn.Linear(channels // r, channels)

    def forward(self, x, mask):
        s = torch.sum(x * mask, dim=2) / torch.sum(mask, dim=2)
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(s))))
        return x * s[:, :, None]


class Net(nn.Module):
    def __init__(self, n_in=5, c=16, n_out=4):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, c, 7, padding=3)
        self.se1 = MaskedSE(c)
        self.conv2 = nn.Conv1d(c, c, 3, padding=1)
        self.se2 = MaskedSE(c)
        self.head = nn.Linear(c, n_out)

    def forward(self, x, mask):
        mask = mask.unsqueeze(1).float()
        h = x.transpose(1, 2) * mask
        h = self.se1(torch.relu(self.conv1(h)), mask) * mask
        h = self.se2(torch.relu(self.conv2(h)), mask)
        h = h.masked_fill(mask == 0, float("-inf"))
        return self.head(nn.functional.adaptive_max_pool1d(h, 1).squeeze(-1))


def make():
    torch.manual_seed(116)
    return Net()
