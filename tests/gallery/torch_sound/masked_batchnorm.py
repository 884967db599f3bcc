import torch
from torch import nn


class MaskedBatchNorm1d(nn.Module):
    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x, mask):
        if self.training:
            steps = mask.sum()
            mean = (x * mask).sum((0, 2)) / steps
            var = (((x - mean[:, None]) * mask) ** 2).sum((0, 2)) / steps
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach(), self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        x = (x - mean[:, None]) / torch.sqrt(var[:, None] + self.eps)
        return (x * self.weight[:, None] + self.bias[:, None]) * mask


class Net(nn.Module):
    def __init__(self, n_in=5, c=12, n_out=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(n_in, c, 5, padding=2), MaskedBatchNorm1d(c)
        self.conv2, self.bn2 = nn.Conv1d(c, c, 3, padding=1), MaskedBatchNorm1d(c)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x, lengths):
        mask = (torch.arange(x.size(1))[None, :] < lengths[:, None])[:, None, :].float()
        h = torch.where(mask.bool(), x.mT, 0.0)
        h = torch.relu(self.bn1(self.conv1(h), mask))
        h = torch.relu(self.bn2(self.conv2(h), mask))
        return self.fc(h.sum(-1) / mask.sum(-1))


def make():
    torch.manual_seed(114)
    net = Net()
    for bn in (net.bn1, net.bn2):
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(bn.bias)
    return net
