import torch
from torch import nn
from torch.nn import functional as F


class StatisticsPooling(nn.Module):
    def __init__(self, feats=6, dim=12, classes=4):
        super().__init__()
        self.frame = nn.Linear(feats, dim)
        self.fc = nn.Linear(2 * dim, classes)

    def forward(self, x, mask):
        h = F.leaky_relu(self.frame(x))
        w = mask.float() / mask.float().sum(1, keepdim=True)
        mean = torch.einsum("bt,btd->bd", w, h)
        var = torch.einsum("bt,btd->bd", w, (h - mean.unsqueeze(1)) ** 2)
        return self.fc(torch.cat([mean, var.clamp(min=1e-5).sqrt()], dim=1))


def make():
    torch.manual_seed(128)
    return StatisticsPooling()
