"""Recurrent models that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import network, seeded


@network(
    421,
    lambda: dict(gru=nn.GRU(5, 10, batch_first=True, bidirectional=True), score=nn.Linear(20, 1), fc=nn.Linear(20, 4)),
    features=5,
)
def best_step(self, x):
    """The one step with the highest score answers for all."""
    h, _ = self.gru(x)
    best = self.score(h).argmax(dim=1, keepdim=True)
    return self.fc(h.gather(1, best.expand(-1, -1, h.size(-1))).squeeze(1))


@network(
    333,
    lambda: dict(gru=nn.GRU(5, 8, 2, batch_first=True, dropout=0.3, bidirectional=True), out=nn.Linear(16, 6)),
    features=5,
)
def bigru_final_states(self, x):
    _, h = self.gru(x)
    return self.out(torch.cat((h[-2], h[-1]), dim=1))


@network(330, lambda: dict(lstm=nn.LSTM(6, 10, batch_first=True, bidirectional=True), fc=nn.Linear(20, 3)), features=6)
def bilstm_last_output(self, x):
    out, _ = self.lstm(x)
    out = out[:, -1, :]
    return self.fc(out)


class BiLSTMTagger(nn.Module):
    def __init__(self, vocab=40, emb=8, hidden=10, tags=5):
        super().__init__()
        self.emb = nn.Embedding(vocab, emb)
        self.lstm = nn.LSTM(emb, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(hidden * 2, tags)

    def forward(self, sentence):
        out, _ = self.lstm(self.emb(sentence))
        return self.hidden2tag(out)


class TwoGRUs(nn.Module):
    """Bidirectional by hand: a second GRU reads the flipped sequence, its states are flipped back."""

    def __init__(self, n_in=5, h=8, n_out=4):
        super().__init__()
        self.forward_gru, self.backward_gru = nn.GRU(n_in, h, batch_first=True), nn.GRU(n_in, h, batch_first=True)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x):
        right, _ = self.forward_gru(x)
        left, _ = self.backward_gru(torch.flip(x, dims=[1]))
        both = torch.cat([right, torch.flip(left, dims=[1])], dim=2)
        return self.fc(both.max(dim=1).values)


class ConvLSTM(nn.Module):
    def __init__(self, n_in=6, channels=10, hidden=12, n_out=4):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(n_in, channels, 5, stride=2, padding=2), nn.ReLU(), nn.Dropout(0.2))
        self.lstm = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        z = self.conv(x.transpose(1, 2)).transpose(1, 2)
        z, _ = self.lstm(z)
        return self.fc(z[:, -1])


@network(429, lambda: dict(gru=nn.GRU(4, 8, batch_first=True), fc=nn.Linear(8, 3)), features=4, shortest=3)
def cropped_by_padding(self, x):
    """Cuts two steps off the end by a padding below zero."""
    y = self.gru(x)[0].transpose(1, 2)
    return self.fc(F.pad(y, (0, -2)).mean(dim=2))


@network(424, lambda: dict(gru=nn.GRU(1, 6, batch_first=True), fc=nn.Linear(24, 3)), features=4)
def each_variable_by_itself(self, x):
    """Every variable is a row of its own for one shared GRU."""
    b, t, v = x.shape
    rows = x.transpose(1, 2).reshape(b * v, t, 1)
    _, h = self.gru(rows)
    return self.fc(h.view(b, -1))


@network(
    341,
    lambda: dict(lstm=nn.LSTM(5, 8, batch_first=True, bidirectional=True), norm=nn.LayerNorm(16), fc=nn.Linear(16, 3)),
    features=5,
)
def first_and_last(self, x):
    """The backward state has read everything at the first step, the forward state at the last one."""
    y = self.lstm(x)[0]
    ends = torch.cat([y[:, -1, :8], y[:, 0, 8:]], dim=-1)
    return self.fc(self.norm(ends))


@network(
    332,
    lambda: dict(gru=nn.GRU(7, 12, batch_first=True), head=nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 4))),
    features=7,
)
def gru_mean(self, x):
    return self.head(self.gru(x)[0].mean(dim=1))


class WithState(nn.Module):
    def __init__(self, n_in=4, hidden=9, n_out=5):
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(2, 1, hidden) * 0.5)
        self.gru = nn.GRU(n_in, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        y, h = self.gru(x, self.h0.expand(-1, x.shape[0], -1).contiguous())
        return self.fc(y.sum(1) / x.shape[1] + h.transpose(0, 1).flatten(1))


class Sandwich(nn.Module):
    def __init__(self, n_in=4, c=8, n_out=3):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, c, 3, padding=1)
        self.lstm = nn.LSTM(c, c // 2, bidirectional=True, batch_first=True)
        self.conv2, self.fc = nn.Conv1d(c, c, 3, padding=1), nn.Linear(c, n_out)

    def forward(self, x):
        x = F.relu(self.conv1(x.permute(0, 2, 1)))
        x, _ = self.lstm(x.permute(0, 2, 1))
        x = F.relu(self.conv2(x.permute(0, 2, 1)))
        return self.fc(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


@network(331, lambda: dict(lstm=nn.LSTM(5, 12, 2, batch_first=True), fc=nn.Linear(12, 4)), features=5)
def lstm_final_state(self, x):
    h0 = torch.zeros(2, x.size(0), 12)
    c0 = torch.zeros(2, x.size(0), 12)
    _, (h_n, _) = self.lstm(x, (h0, c0))
    return self.fc(h_n[-1])


class ConcatPooling(nn.Module):
    def __init__(self, vocab=64, d=10, classes=4):
        super().__init__()
        self.embed, self.gru = nn.Embedding(vocab, d), nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.linear, self.out = nn.Linear(4 * d, 12), nn.Linear(12, classes)

    def forward(self, ids):
        h, _ = self.gru(self.embed(ids))
        avg_pool = torch.mean(h, 1)
        max_pool, _ = torch.max(h, 1)
        conc = torch.cat((avg_pool, max_pool), 1)
        return self.out(torch.relu(self.linear(conc)))


@network(503, lambda: dict(rnn=nn.GRU(5, 8, batch_first=True), head=nn.Linear(8, 3)), features=5)
def median_pool(self, x):
    out, _ = self.rnn(x)
    return self.head(out.median(dim=1).values)


@network(505, lambda: dict(rnn=nn.GRU(5, 8, batch_first=True), head=nn.Linear(8, 3)), features=5)
def reversed_by_index(self, x):
    """The steps of each row are reversed by an index for each row and place."""
    rows, steps, _ = x.shape
    places = torch.arange(steps - 1, -1, -1).expand(rows, steps)
    out, _ = self.rnn(x[torch.arange(rows)[:, None], places])
    return self.head(out[:, -1])


@network(
    334,
    lambda: dict(rnn=nn.RNN(4, 16, nonlinearity="tanh", batch_first=True, bidirectional=True), linear=nn.Linear(32, 3)),
    features=4,
)
def rnn_max(self, seq):
    states, _ = self.rnn(seq)
    return self.linear(torch.max(states, 1)[0])


class ResidualLSTM(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(d, d // 2, batch_first=True, bidirectional=True), nn.LayerNorm(d)

    def forward(self, x):
        return self.norm(x + self.lstm(x)[0])


class Stack(nn.Module):
    def __init__(self, n_in=9, d=12, depth=3, n_out=4):
        super().__init__()
        self.inp, self.blocks = nn.Linear(n_in, d), nn.Sequential(*[ResidualLSTM(d) for _ in range(depth)])
        self.out = nn.Linear(2 * d, n_out)

    def forward(self, x):
        z = self.blocks(self.inp(x))
        return self.out(torch.cat([z.mean(1), z.amax(1)], dim=1))


@network(361, lambda: dict(lstm=nn.LSTM(4, 10, batch_first=True), fc=nn.Linear(10, 3)), features=4)
def standardised_by_hand(self, x):
    mu = x.mean(dim=1, keepdim=True)
    sd = ((x - mu) ** 2).mean(dim=1, keepdim=True).sqrt()
    x = (x - mu) / (sd + 1e-1)
    return self.fc(self.lstm(x)[1][0][-1])


@network(339, lambda: dict(rnn=nn.LSTM(5, 10, num_layers=2), out=nn.Linear(10, 4)), features=5, time_first=True)
def time_first_lstm(self, x):
    """As torch's recurrent layers want it by default: [time, batch, features]."""
    outputs, _ = self.rnn(x)
    return self.out(outputs[-1])


class TokenBehind(nn.Module):
    """A learned token stands behind the last step, and is what the answer is read from."""

    def __init__(self, n_in=4, d=12, n_out=4):
        super().__init__()
        self.inp, self.ask = nn.Linear(n_in, d), nn.Parameter(torch.randn(1, 1, d))
        self.gru, self.fc = nn.GRU(d, d, batch_first=True), nn.Linear(d, n_out)

    def forward(self, x):
        h = torch.cat([self.inp(x), self.ask.expand(x.size(0), -1, -1)], dim=1)
        return self.fc(self.gru(h)[0][:, -1])


@network(
    340,
    lambda: dict(
        embedding=nn.Embedding(50, 8), gru=nn.GRU(8, 12, batch_first=True), dropout=nn.Dropout(0.4), fc=nn.Linear(12, 2)
    ),
    vocabulary=50,
)
def token_gru_last(self, text):
    _, hidden = self.gru(self.dropout(self.embedding(text)))
    return self.fc(hidden.squeeze(0))


@network(
    428,
    lambda: dict(lstm=nn.LSTM(5, 6, batch_first=True, bidirectional=True), fc=nn.Linear(12, 3)),
    features=5,
    shortest=3,
)
def trimmed_states(self, x):
    """The first and the last step are markers: their states do not count."""
    states, _ = self.lstm(x)
    return self.fc(states[:, 1:-1].mean(dim=1))


@network(405, lambda: dict(lstm=nn.LSTM(4, 10, batch_first=True), fc=nn.Linear(11, 3)), features=4)
def width_as_feature(self, x):
    """How long the recording is is one more number for the last layer."""
    b, t, _ = x.shape
    duration = torch.full((b, 1), 1.0) * t / 50.0
    return self.fc(torch.cat([self.lstm(x)[0][:, 0], duration], dim=1))


bilstm_tagger = seeded(337, BiLSTMTagger, vocabulary=40, per_step=True)
both_directions = seeded(359, TwoGRUs, features=5)
conv_then_lstm = seeded(335, ConvLSTM, features=6)
learned_initial_state = seeded(342, WithState, features=4)
lstm_between_convs = seeded(336, Sandwich, features=4)
mean_and_max = seeded(346, ConcatPooling, vocabulary=64)
stacked_residual_lstm = seeded(343, Stack, features=9)
token_behind = seeded(417, TokenBehind, features=4)
