import torch
from torch import nn


class SpectrogramCNN(nn.Module):
    def __init__(self, n_bands=8, channels=6, n_classes=5):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel_size=(3, 3), padding=1)
        self.act = nn.LeakyReLU(0.1)
        self.down = nn.MaxPool2d(kernel_size=(1, 2))
        self.gap = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, n_classes)

    def forward(self, spec, mask):
        m = mask.unsqueeze(1).unsqueeze(-1)
        x = spec.unsqueeze(1) * m
        x = self.down(self.act(self.conv(x))) * m
        x = self.gap(x)  # leak
        return self.fc(torch.flatten(x, 1))


def make():
    torch.manual_seed(49)
    return SpectrogramCNN()
