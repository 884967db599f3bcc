"""Models that cannot be judged."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.gallery.torch_models import network, seeded


class Turned(nn.Module):
    """Wants [rows, features, width]; called with [rows, width, features] it raises."""

    def __init__(self, c_in=4, c=8, n_out=3):
        super().__init__()
        self.conv, self.out = nn.Conv1d(c_in, c, 3, padding=1), nn.Linear(c, n_out)

    def forward(self, x, mask):
        h = torch.relu(self.conv(x * mask.unsqueeze(1))) * mask.unsqueeze(1)
        return self.out(h.sum(-1))


@network(
    210, lambda: dict(chunk=nn.Linear(24, 8), out=nn.Linear(8, 2)), reason="multiples of 8", features=3, second="mask"
)
def chunks_of_eight(self, x, mask):
    x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    return self.out(torch.tanh(self.chunk(x.reshape(x.size(0), -1, 24))).sum(1))


@network(215, lambda: dict(out=nn.Linear(4, 3)), nn.Module.double, reason="float64", features=4, second="mask")
def double_weights(self, x, mask):
    return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1))


class MonteCarlo(nn.Module):
    def __init__(self, n_in=6, d=16, n_out=3):
        super().__init__()
        self.step, self.out = nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x, mask):
        h = F.dropout(torch.relu(self.step(x)), 0.2)
        h = h.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.out(h.sum(1) / mask.sum(1, keepdim=True))


@network(216, lambda: dict(out=nn.Linear(4, 3)), reason="mask = mask.to(x.dtype)", features=4, second="mask")
def float_mask_wanted(self, x, mask):
    away = (1.0 - mask) * -1e4
    return self.out((x + away.unsqueeze(-1)).amax(1))


BATCH_SIZE = 16


@network(
    202,
    lambda: dict(gru=nn.GRU(5, 8, batch_first=True), fc=nn.Linear(8, 2), hidden=torch.zeros(1, BATCH_SIZE, 8)),
    reason=("rows", "batch"),
    features=5,
)
def frozen_rows(self, x, lengths):
    out, _ = self.gru(x, self.hidden)
    return self.fc(out[torch.arange(x.size(0)), lengths - 1])


@network(
    201,
    lambda: dict(conv=nn.Conv1d(4, 8, 3, padding=1), fc=nn.Linear(320, 3)),
    reason="width",
    features=4,
    second="mask",
)
def frozen_width(self, x, mask):
    x = (x * mask.unsqueeze(-1)).transpose(1, 2)
    x = torch.relu(self.conv(x)) * mask.unsqueeze(1)
    return self.fc(x.flatten(1))


class ZeroHead(nn.Module):
    """A mean that reads padding, behind a last layer that is still zeros: nothing shows."""

    def __init__(self, n_in=5, d=8, n_out=3):
        super().__init__()
        self.step, self.out = nn.Linear(n_in, d), nn.Linear(d, n_out)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, lengths):
        return self.out(torch.tanh(self.step(x)).mean(1))


@network(
    205,
    lambda: dict(step=nn.Sequential(nn.Linear(5, 12), nn.Tanh()), score=nn.Linear(12, 1), out=nn.Linear(24, 3)),
    reason="left",
    features=5,
)
def left_padding(self, x, lengths):
    """Sequences end at the right border, as a causal decoder wants them."""
    h = self.step(x)
    padding = torch.arange(x.size(1)) < (x.size(1) - lengths).unsqueeze(1)
    a = self.score(h).squeeze(-1).masked_fill(padding, float("-inf")).softmax(dim=1)
    context = (a.unsqueeze(-1) * h).sum(dim=1)
    return self.out(torch.cat([context, h[:, -1]], dim=-1))


@network(213, lambda: dict(out=nn.Linear(5, 3)), reason="must be [rows, classes]", features=5, second="mask")
def no_axis_of_rows(self, x, mask):
    """One answer for the whole batch."""
    return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum((0, 1), keepdim=True)[0])


class PlainLSTM(nn.Module):
    def __init__(self, n_in=7, hidden=12, n_out=4):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(n_in, hidden, batch_first=True), nn.Linear(hidden, n_out)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


@network(
    211, lambda: dict(rnn=nn.GRU(4, 6, batch_first=True), out=nn.Linear(6, 2)), reason="lengths differ", features=4
)
def one_length_a_batch(self, x, lengths):
    if (lengths != lengths[0]).any():
        raise NotImplementedError("bucket the data by length first")
    return self.out(self.rnn(x[:, : int(lengths[0])])[1][-1])


@network(
    200,
    lambda: dict(lstm=nn.LSTM(6, 12, batch_first=True), fc=nn.Linear(12, 3)),
    reason=("order", "sorted"),
    features=6,
)
def order_demanded(self, x, lengths):
    """The collate function sorts each batch by length, longest first."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
    _, (h, _) = self.lstm(packed)
    return self.fc(h[-1])


@network(208, lambda: dict(step=nn.Linear(4, 8), out=nn.Linear(8, 3)), reason="shares of the", features=4)
def share_of_the_longest(self, x, lens):
    """Lengths as a share of the longest: with steps it runs at a width of 1 alone."""
    n = (lens * x.size(1)).round().long()
    h = torch.tanh(self.step(x)).cumsum(1)
    return self.out(h[torch.arange(x.size(0)), n - 1] / n[:, None])


@network(
    206,
    lambda: dict(inp=nn.Linear(6, 16), attn=nn.MultiheadAttention(16, 4, batch_first=True), out=nn.Linear(16, 4)),
    reason=("pad", "--second"),
    features=6,
    second=None,
)
def which_way_round(self, x, padding_mask):
    """fairseq's convention: true where there is padding."""
    h = self.inp(x)
    h, _ = self.attn(h, h, h, key_padding_mask=padding_mask, need_weights=False)
    return self.out(h[:, 0])


@network(209, lambda: dict(step=nn.Linear(4, 8), out=nn.Linear(8, 3)), reason="past a width of 1", features=4)
def wide_of_one(self, x, lengths):
    """Reads past the end of every row that has more than one step."""
    h = torch.tanh(self.step(x))
    return self.out(h[torch.arange(x.size(0)), lengths * (x.size(1) - 1)])


channels_first_unsaid = seeded(214, Turned, reason="--channels-first", features=4, second="mask")
dropout_always_on = seeded(204, MonteCarlo, reason=("twice", "same answer"), features=6, second="mask")
last_layer_of_zeros = seeded(212, ZeroHead, reason="do not depend on the sequences", features=5)
no_lengths = seeded(203, PlainLSTM, reason=("length", "mask"), features=7, second=None)
