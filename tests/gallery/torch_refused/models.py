"""Models that cannot be judged."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.gallery.torch_models import seeded


class Turned(nn.Module):
    """Wants [rows, features, width]; called with [rows, width, features] it raises."""

    def __init__(self, c_in=4, c=8, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(c_in, c, 3, padding=1)
        self.out = nn.Linear(c, n_out)

    def forward(self, x, mask):
        h = torch.relu(self.conv(x * mask.unsqueeze(1))) * mask.unsqueeze(1)
        return self.out(h.sum(-1))


class Chunks(nn.Module):
    def __init__(self, n_in=3, d=8, n_out=2):
        super().__init__()
        self.chunk = nn.Linear(8 * n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, mask):
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.out(torch.tanh(self.chunk(x.reshape(x.size(0), -1, 24))).sum(1))


class Double(nn.Module):
    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1))


class MonteCarlo(nn.Module):
    def __init__(self, n_in=6, d=16, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, mask):
        h = F.dropout(torch.relu(self.step(x)), 0.2)
        h = h.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.out(h.sum(1) / mask.sum(1, keepdim=True))


class FloatMask(nn.Module):
    def __init__(self, n_in=4, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        away = (1.0 - mask) * -1e4
        return self.out((x + away.unsqueeze(-1)).amax(1))


BATCH_SIZE = 16


class StatefulGRU(nn.Module):
    def __init__(self, n_in=5, hidden=8, n_out=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)
        self.hidden = torch.zeros(1, BATCH_SIZE, hidden)

    def forward(self, x, lengths):
        out, _ = self.gru(x, self.hidden)
        return self.fc(out[torch.arange(x.size(0)), lengths - 1])


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


class ZeroHead(nn.Module):
    """A mean that reads padding, behind a last layer that is still zeros: nothing shows."""

    def __init__(self, n_in=5, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, lengths):
        return self.out(torch.tanh(self.step(x)).mean(1))


class LeftPadded(nn.Module):
    """Sequences end at the right border, as a causal decoder wants them."""

    def __init__(self, n_in=5, d=12, n_out=3):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(n_in, d), nn.Tanh())
        self.score = nn.Linear(d, 1)
        self.out = nn.Linear(2 * d, n_out)

    def forward(self, x, lengths):
        h = self.step(x)
        padding = torch.arange(x.size(1)) < (x.size(1) - lengths).unsqueeze(1)
        a = self.score(h).squeeze(-1).masked_fill(padding, float("-inf")).softmax(dim=1)
        context = (a.unsqueeze(-1) * h).sum(dim=1)
        return self.out(torch.cat([context, h[:, -1]], dim=-1))


class WholeBatch(nn.Module):
    """One answer for the whole batch."""

    def __init__(self, n_in=5, n_out=3):
        super().__init__()
        self.out = nn.Linear(n_in, n_out)

    def forward(self, x, mask):
        return self.out(x.masked_fill(~mask.unsqueeze(-1), 0.0).sum((0, 1), keepdim=True)[0])


class PlainLSTM(nn.Module):
    def __init__(self, n_in=7, hidden=12, n_out=4):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


class Equal(nn.Module):
    def __init__(self, n_in=4, hidden=6, n_out=2):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n_out)

    def forward(self, x, lengths):
        if (lengths != lengths[0]).any():
            raise NotImplementedError("bucket the data by length first")
        return self.out(self.rnn(x[:, : int(lengths[0])])[1][-1])


class OldStyleLSTM(nn.Module):
    """The collate function sorts each batch by length, longest first."""

    def __init__(self, n_in=6, hidden=12, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(h[-1])


class Relative(nn.Module):
    """Lengths as a share of the longest: with steps it runs at a width of 1 alone."""

    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lens):
        n = (lens * x.size(1)).round().long()
        h = torch.tanh(self.step(x)).cumsum(1)
        return self.out(h[torch.arange(x.size(0)), n - 1] / n[:, None])


class Encoder(nn.Module):
    """fairseq's convention: true where there is padding."""

    def __init__(self, n_in=6, d=16, n_out=4):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, padding_mask):
        h = self.inp(x)
        h, _ = self.attn(h, h, h, key_padding_mask=padding_mask, need_weights=False)
        return self.out(h[:, 0])


class OneStep(nn.Module):
    """Reads past the end of every row that has more than one step."""

    def __init__(self, n_in=4, d=8, n_out=3):
        super().__init__()
        self.step = nn.Linear(n_in, d)
        self.out = nn.Linear(d, n_out)

    def forward(self, x, lengths):
        h = torch.tanh(self.step(x))
        return self.out(h[torch.arange(x.size(0)), lengths * (x.size(1) - 1)])


channels_first_unsaid = seeded(214, Turned)
chunks_of_eight = seeded(210, Chunks)
double_weights = seeded(215, Double, nn.Module.double)
dropout_always_on = seeded(204, MonteCarlo)
float_mask_wanted = seeded(216, FloatMask)
frozen_rows = seeded(202, StatefulGRU)
frozen_width = seeded(201, FlattenCNN)
last_layer_of_zeros = seeded(212, ZeroHead)
left_padding = seeded(205, LeftPadded)
no_axis_of_rows = seeded(213, WholeBatch)
no_lengths = seeded(203, PlainLSTM)
one_length_a_batch = seeded(211, Equal)
order_demanded = seeded(200, OldStyleLSTM)
share_of_the_longest = seeded(208, Relative)
which_way_round = seeded(206, Encoder)
wide_of_one = seeded(209, OneStep)
