import torch
from torch import nn


class EdgeRepeated(nn.Module):
    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, c, 5, padding=2, padding_mode="replicate")
        self.conv2 = nn.Conv1d(c, c, 3, padding=1, padding_mode="replicate")
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = torch.relu(self.conv1(x.transpose(1, 2)))
        x = torch.relu(self.conv2(x))
        return self.fc(x.mean(dim=-1))


def make():
    torch.manual_seed(376)
    return EdgeRepeated()
