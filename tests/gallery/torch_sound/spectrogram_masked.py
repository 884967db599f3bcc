import torch
from torch import nn


class MaskedSpectrogramCNN(nn.Module):
    def __init__(self, n_bands=8, channels=6, n_classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.AvgPool2d((1, 2))
        self.gru = nn.GRU(channels * n_bands // 2, 10, batch_first=True)
        self.fc = nn.Linear(10, n_classes)

    def forward(self, spec, lengths):
        m = (torch.arange(spec.size(1)) < lengths[:, None])[:, None, :, None]
        x = torch.where(m, spec.unsqueeze(1), 0.0)
        x = torch.relu(self.conv1(x)) * m
        x = self.pool(torch.relu(self.conv2(x)))
        x = x.permute(0, 2, 1, 3).flatten(2)
        h, _ = self.gru(x)
        return self.fc(h[range(len(h)), lengths - 1])


def make():
    torch.manual_seed(139)
    return MaskedSpectrogramCNN()
