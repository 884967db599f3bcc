import torch
from torch import nn

from tests.gallery.torch_models import with_statistics


class GRUFCN(nn.Module):
    def __init__(self, c_in=1, hidden=6, c_out=3):
        super().__init__()
        self.gru = nn.GRU(c_in, hidden, batch_first=True)
        self.fcn = nn.Sequential()
        for i, (n, k) in enumerate(zip((8, 12, 8), (8, 5, 3), strict=True)):
            self.fcn.add_module(f"conv{i}", nn.Conv1d((c_in, 8, 12)[i], n, k, padding="same"))
            self.fcn.add_module(f"bn{i}", nn.BatchNorm1d(n))
            self.fcn.add_module(f"relu{i}", nn.ReLU())
        self.fc = nn.Linear(hidden + 8, c_out)

    def forward(self, x):
        state = self.gru(x.transpose(1, 2))[1].squeeze(0)
        pooled = self.fcn(x).mean(-1)
        return self.fc(torch.cat([pooled, state], -1))


def make():
    torch.manual_seed(322)
    return with_statistics(GRUFCN())
