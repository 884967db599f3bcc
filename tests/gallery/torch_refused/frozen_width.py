import torch
from torch import nn


class FlattenCNN(nn.Module):
    MAX_LEN = 40

    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, 3, padding=1)
        self.fc = nn.Linear(c * self.MAX_LEN, n_out)

    def forward(self, x, mask):
        x = (x * mask.unsqueeze(-1)).transpose(1, 2)
        x = torch.relu(self.conv(x)) * mask.unsqueeze(1)
        return self.fc(x.flatten(1))


def make():
    torch.manual_seed(201)
    return FlattenCNN()
