"""Models that cannot be given lengths."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded


@network(
    465,
    lambda: dict(inp=nn.Linear(6, 12), attn=nn.MultiheadAttention(12, 2), fc=nn.Linear(12, 3)),
    reason="rows",
    features=6,
)
def attention_between_rows(self, x):
    """The attention layer lacks `batch_first`: the rows look at each other."""
    h = self.inp(x)
    h = h + self.attn(h, h, h)[0]
    return self.fc(h.mean(1))


@network(464, lambda: dict(lstm=nn.LSTM(5, 10), fc=nn.Linear(10, 4)), reason="rows", features=5)
def batch_first_forgotten(self, x):
    """[batch, time, features] given to an LSTM that wants the time first."""
    out, _ = self.lstm(x)
    return self.fc(out[:, -1])


class AlwaysTraining(nn.Module):
    """Normalises with the statistics of the batch that it is given, as nobody should when serving."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.conv = nn.Conv1d(n_in, d, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(d) + 0.5), nn.Parameter(torch.randn(d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        z = self.conv(x.transpose(1, 2))
        z = F.batch_norm(z, None, None, self.weight, self.bias, training=True)
        return self.fc(torch.relu(z).mean(-1))


class Branching(nn.Module):
    """Goes one way or the other by the loudest value in the batch."""

    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.loud, self.quiet, self.fc = nn.Linear(n_in, d), nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.loud(x) if x.abs().max() > 2.5 else self.quiet(x)
        return self.fc(torch.relu(h).mean(1))


@network(520, lambda: dict(embed=nn.Linear(4, 8), head=nn.Linear(8, 3)), reason="branches on the width", features=4)
def branch_on_width(self, x):
    """Long recordings are pooled otherwise: a branch of Python on the width of the batch."""
    h = torch.tanh(self.embed(x))
    if x.size(1) > 110:
        return self.head(h.amax(dim=1))
    return self.head(h.mean(dim=1))


class Chunked(nn.Module):
    def __init__(self, n_in=3, chunk=8, d=12, n_out=4):
        super().__init__()
        self.chunk, self.enc, self.fc = chunk, nn.Linear(n_in * chunk, d), nn.Linear(d, n_out)

    def forward(self, x):
        b, t, f = x.shape
        chunks = x.reshape(b, t // self.chunk, self.chunk * f)
        return self.fc(torch.relu(self.enc(chunks)).mean(dim=1))


class MonteCarlo(nn.Module):
    def __init__(self, n_in=6, d=16, n_out=3):
        super().__init__()
        self.lstm, self.out = nn.LSTM(n_in, d, batch_first=True), nn.Linear(d, n_out)

    def forward(self, x):
        h, _ = self.lstm(x)
        return self.out(F.dropout(h[:, -1], 0.2, training=True))


class FixedWidth(nn.Module):
    def __init__(self, n_in=3, c=6, seq_len=32, n_out=4):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(n_in, c, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(c * seq_len // 2, n_out))

    def forward(self, x):
        return self.head(self.conv(x.transpose(1, 2)))


class FNet(nn.Module):
    def __init__(self, n_in=6, d=10, n_out=4):
        super().__init__()
        self.inp, self.norm, self.fc = nn.Linear(n_in, d), nn.LayerNorm(d), nn.Linear(d, n_out)

    def forward(self, x):
        h = self.inp(x)
        mixed = torch.fft.fft(h, dim=1).real
        return self.fc(self.norm(h + mixed).mean(1))


@network(451, lambda: dict(enc=nn.Linear(4, 10), fc=nn.Linear(10, 3)), reason="rows", features=4)
def mean_over_rows(self, x):
    z = torch.tanh(self.enc(x)).mean(dim=1)
    return self.fc(z - z.mean(dim=0, keepdim=True))


class MixerBlock(nn.Module):
    def __init__(self, steps, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.tokens, self.channels = nn.Linear(steps, steps), nn.Linear(d, d)

    def forward(self, x):
        x = x + torch.relu(self.tokens(self.norm1(x).transpose(1, 2))).transpose(1, 2)
        return x + torch.relu(self.channels(self.norm2(x)))


class Mixer(nn.Module):
    def __init__(self, n_in=5, d=8, steps=24, n_out=3):
        super().__init__()
        self.inp, self.blocks = nn.Linear(n_in, d), nn.Sequential(MixerBlock(steps, d), MixerBlock(steps, d))
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        return self.fc(self.blocks(self.inp(x)).mean(1))


@network(
    457, lambda: dict(enc=nn.Linear(4, 12), fc=nn.Linear(12, 3)), reason=("random", "twice", "same answer"), features=4
)
def noise_added(self, x):
    x = x + 0.1 * torch.rand(x.shape)
    return self.fc(torch.relu(self.enc(x)).max(1)[0])


@network(466, lambda: dict(cell=nn.GRUCell(4, 8), fc=nn.Linear(8, 3)), reason=("loop", "width"), features=4)
def python_loop(self, x):
    """The loop runs in Python: a graph of it holds one width."""
    h = torch.zeros(x.size(0), self.cell.hidden_size)
    for t in range(x.size(1)):
        h = self.cell(x[:, t], h)
    return self.fc(h)


@network(460, lambda: dict(gru=nn.GRU(4, 10, batch_first=True), fc=nn.Linear(20, 3)), reason="rows", features=4)
def ranked_among_rows(self, x):
    """Each number is replaced by the one of that rank in the batch."""
    h = self.gru(x)[1][-1]
    ranked, _ = h.sort(dim=0)
    return self.fc(torch.cat([h, ranked], dim=1))


@network(
    463, lambda: dict(enc=nn.Linear(5, 10), score=nn.Linear(10, 1), fc=nn.Linear(10, 3)), reason="rows", features=5
)
def softmax_over_rows(self, x):
    h = torch.tanh(self.enc(x))
    weights = torch.softmax(self.score(h), dim=0)
    return self.fc((weights * h).sum(1))


class Salient(nn.Module):
    """Keeps the steps that score above zero, of all rows in one list, and adds them up by row."""

    def __init__(self, n_in=5, d=10, n_out=3):
        super().__init__()
        self.score, self.enc, self.fc = nn.Linear(n_in, 1), nn.Linear(n_in, d), nn.Linear(d, n_out)

    def forward(self, x):
        keep = self.score(x).squeeze(-1) > 0
        rows = keep.nonzero()[:, 0]
        chosen = torch.relu(self.enc(x[keep]))
        total = torch.zeros(x.size(0), chosen.size(1)).index_add(0, rows, chosen)
        return self.fc(total)


batch_statistics = seeded(450, AlwaysTraining, reason=("rows", "training"), features=5)
branch_on_values = seeded(467, Branching, reason=("branch", "depends on", "control flow"), features=4)
chunks_of_eight = seeded(461, Chunked, reason=("chunk", "multiple", "divi", "reshape"), features=3)
dropout_always_on = seeded(456, MonteCarlo, reason=("random", "dropout", "twice", "same answer"), features=6)
fixed_width_head = seeded(452, FixedWidth, reason="width", features=3, longest=32)
fourier_mixing = seeded(455, FNet, reason=("fft", "dft", "fourier"), features=6)
mixer_of_fixed_width = seeded(453, Mixer, reason="width", features=5, longest=24)
steps_chosen_by_value = seeded(459, Salient, reason=("values", "depends on", "nonzero", "boolean"), features=5)
