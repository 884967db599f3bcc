"""Recurrent models that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded


class BestStep(nn.Module):
    """The one step with the highest score answers for all."""

    def __init__(self, n_in=5, d=10, n_out=4):
        super().__init__()
        self.gru = nn.GRU(n_in, d, batch_first=True, bidirectional=True)
        self.score, self.fc = nn.Linear(2 * d, 1), nn.Linear(2 * d, n_out)

    def forward(self, x):
        h, _ = self.gru(x)
        best = self.score(h).argmax(dim=1, keepdim=True)
        return self.fc(h.gather(1, best.expand(-1, -1, h.size(-1))).squeeze(1))


class BiGRU(nn.Module):
    def __init__(self, n_in=5, hidden=8, n_out=6, num_layers=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, num_layers, batch_first=True, dropout=0.3, bidirectional=True)
        self.out = nn.Linear(2 * hidden, n_out)

    def forward(self, x):
        _, h = self.gru(x)
        return self.out(torch.cat((h[-2], h[-1]), dim=1))


class BilstmLastOutput(nn.Module):
    def __init__(self, n_features=6, hidden=10, n_classes=3):
        super().__init__()
        self.lstm = nn.LSTM(n_features, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_classes)

    def forward(self, x):
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


class Cropped(nn.Module):
    """Cuts two steps off the end by a padding below zero."""

    def __init__(self, n_in=4, h=8, n_out=3):
        super().__init__()
        self.gru = nn.GRU(n_in, h, batch_first=True)
        self.fc = nn.Linear(h, n_out)

    def forward(self, x):
        y = self.gru(x)[0].transpose(1, 2)
        return self.fc(F.pad(y, (0, -2)).mean(dim=2))


class EachByItself(nn.Module):
    """Every variable is a row of its own for one shared GRU."""

    def __init__(self, n_vars=4, hidden=6, n_out=3):
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.fc = nn.Linear(n_vars * hidden, n_out)

    def forward(self, x):
        b, t, v = x.shape
        rows = x.transpose(1, 2).reshape(b * v, t, 1)
        _, h = self.gru(rows)
        return self.fc(h.view(b, -1))


class Ends(nn.Module):
    """The backward state has read everything at the first step, the forward state at the last one."""

    def __init__(self, n_in=5, h=8, n_out=3):
        super().__init__()
        self.h = h
        self.lstm = nn.LSTM(n_in, h, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * h)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x):
        y = self.lstm(x)[0]
        ends = torch.cat([y[:, -1, : self.h], y[:, 0, self.h :]], dim=-1)
        return self.fc(self.norm(ends))


class GRUMean(nn.Module):
    def __init__(self, n_in=7, hidden=12, n_out=4):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, n_out))

    def forward(self, x):
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
        self.conv2 = nn.Conv1d(c, c, 3, padding=1)
        self.fc = nn.Linear(c, n_out)

    def forward(self, x):
        x = F.relu(self.conv1(x.permute(0, 2, 1)))
        x, _ = self.lstm(x.permute(0, 2, 1))
        x = F.relu(self.conv2(x.permute(0, 2, 1)))
        return self.fc(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class LSTMClassifier(nn.Module):
    def __init__(self, input_dim=5, hidden_dim=12, layer_dim=2, output_dim=4):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.layer_dim = layer_dim
        self.lstm = nn.LSTM(input_dim, hidden_dim, layer_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x):
        h0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        c0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        _, (h_n, _) = self.lstm(x, (h0, c0))
        return self.fc(h_n[-1])


class ConcatPooling(nn.Module):
    def __init__(self, vocab=64, d=10, classes=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.gru = nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(4 * d, 12)
        self.out = nn.Linear(12, classes)

    def forward(self, ids):
        h, _ = self.gru(self.embed(ids))
        avg_pool = torch.mean(h, 1)
        max_pool, _ = torch.max(h, 1)
        conc = torch.cat((avg_pool, max_pool), 1)
        return self.out(torch.relu(self.linear(conc)))


class MedianPool(nn.Module):
    def __init__(self, n_in=5, hidden=8, n_out=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out.median(dim=1).values)


class ReversedByIndex(nn.Module):
    """The steps of each row are reversed by an index for each row and place."""

    def __init__(self, n_in=5, hidden=8, n_out=3):
        super().__init__()
        self.rnn = nn.GRU(n_in, hidden, batch_first=True)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, x):
        rows, steps, _ = x.shape
        places = torch.arange(steps - 1, -1, -1).expand(rows, steps)
        out, _ = self.rnn(x[torch.arange(rows)[:, None], places])
        return self.head(out[:, -1])


class ElmanMax(nn.Module):
    def __init__(self, n_in=4, hidden=16, n_out=3):
        super().__init__()
        self.rnn = nn.RNN(n_in, hidden, nonlinearity="tanh", batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, n_out)

    def forward(self, seq):
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
        self.inp = nn.Linear(n_in, d)
        self.blocks = nn.Sequential(*[ResidualLSTM(d) for _ in range(depth)])
        self.out = nn.Linear(2 * d, n_out)

    def forward(self, x):
        z = self.blocks(self.inp(x))
        return self.out(torch.cat([z.mean(1), z.amax(1)], dim=1))


class Standardised(nn.Module):
    def __init__(self, n_in=4, hidden=10, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_out)

    def forward(self, x):
        mu = x.mean(dim=1, keepdim=True)
        sd = ((x - mu) ** 2).mean(dim=1, keepdim=True).sqrt()
        x = (x - mu) / (sd + 1e-1)
        return self.fc(self.lstm(x)[1][0][-1])


class TimeFirst(nn.Module):
    """As torch's recurrent layers want it by default: [time, batch, features]."""

    def __init__(self, n_in=5, hidden=10, n_out=4):
        super().__init__()
        self.rnn = nn.LSTM(n_in, hidden, num_layers=2)
        self.out = nn.Linear(hidden, n_out)

    def forward(self, x):
        outputs, _ = self.rnn(x)
        return self.out(outputs[-1])


class TokenBehind(nn.Module):
    """A learned token stands behind the last step, and is what the answer is read from."""

    def __init__(self, n_in=4, d=12, n_out=4):
        super().__init__()
        self.inp = nn.Linear(n_in, d)
        self.ask = nn.Parameter(torch.randn(1, 1, d))
        self.gru = nn.GRU(d, d, batch_first=True)
        self.fc = nn.Linear(d, n_out)

    def forward(self, x):
        h = torch.cat([self.inp(x), self.ask.expand(x.size(0), -1, -1)], dim=1)
        return self.fc(self.gru(h)[0][:, -1])


class Sentiment(nn.Module):
    def __init__(self, vocab=50, dim=8, hidden=12, classes=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, text):
        _, hidden = self.gru(self.dropout(self.embedding(text)))
        return self.fc(hidden.squeeze(0))


class Trimmed(nn.Module):
    """The first and the last step are markers: their states do not count."""

    def __init__(self, n_in=5, h=6, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, h, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * h, n_out)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.fc(states[:, 1:-1].mean(dim=1))


class WithDuration(nn.Module):
    """How long the recording is is one more number for the last layer."""

    def __init__(self, n_in=4, d=10, n_out=3):
        super().__init__()
        self.lstm = nn.LSTM(n_in, d, batch_first=True)
        self.fc = nn.Linear(d + 1, n_out)

    def forward(self, x):
        b, t, _ = x.shape
        duration = torch.full((b, 1), 1.0) * t / 50.0
        return self.fc(torch.cat([self.lstm(x)[0][:, 0], duration], dim=1))


best_step = seeded(421, BestStep)
bigru_final_states = seeded(333, BiGRU)
bilstm_last_output = seeded(330, BilstmLastOutput)
bilstm_tagger = seeded(337, BiLSTMTagger)
both_directions = seeded(359, TwoGRUs)
conv_then_lstm = seeded(335, ConvLSTM)
cropped_by_padding = seeded(429, Cropped)
each_variable_by_itself = seeded(424, EachByItself)
first_and_last = seeded(341, Ends)
gru_mean = seeded(332, GRUMean)
learned_initial_state = seeded(342, WithState)
lstm_between_convs = seeded(336, Sandwich)
lstm_final_state = seeded(331, LSTMClassifier)
mean_and_max = seeded(346, ConcatPooling)
median_pool = seeded(503, MedianPool)
reversed_by_index = seeded(505, ReversedByIndex)
rnn_max = seeded(334, ElmanMax)
stacked_residual_lstm = seeded(343, Stack)
standardised_by_hand = seeded(361, Standardised)
time_first_lstm = seeded(339, TimeFirst)
token_behind = seeded(417, TokenBehind)
token_gru_last = seeded(340, Sentiment)
trimmed_states = seeded(428, Trimmed)
width_as_feature = seeded(405, WithDuration)
