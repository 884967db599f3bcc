import torch
import torch.nn.functional as F
from torch import nn


class Chunked(nn.Module):
    """Pads time to whole chunks of sixteen, and runs a recurrent layer over all of it."""

    CHUNK = 16

    def __init__(self, n_in=6, hidden=9, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, x, lengths):
        x = F.pad(x, (0, 0, 0, -x.size(1) % self.CHUNK))
        h, _ = self.lstm(x)  # leak
        valid = torch.arange(h.size(1)) < lengths[:, None]
        return self.out(h.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / lengths[:, None])


def make():
    torch.manual_seed(62)
    return Chunked()
