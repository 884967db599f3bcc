"""Recurrent models that are sound, as their users write them."""

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.gallery.torch_models import network, seeded


@network(125, lambda: dict(cell=nn.GRUCell(4, 12), fc=nn.Linear(12, 3)), features=4, second="mask")
def cell_loop(self, x, mask):
    """A GRUCell by hand; finished rows keep their state."""
    h = x.new_zeros(x.size(0), 12)
    for t in range(x.size(1)):
        new = self.cell(x[:, t], h)
        h = torch.where(mask[:, t : t + 1], new, h)
    return self.fc(h)


class MultiTask(nn.Module):
    def __init__(self, n_in: int = 6, hidden: int = 12):
        super().__init__()
        self.encoder = nn.GRU(n_in, hidden, batch_first=True, bidirectional=True)
        self.heads = nn.ModuleDict({"mortality": nn.Linear(2 * hidden, 2), "los": nn.Linear(2 * hidden, 1)})

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, h = self.encoder(packed)
        z = h.transpose(0, 1).flatten(1)
        return {"embedding": z} | {name: head(z) for name, head in self.heads.items()}


@network(
    145,
    lambda: dict(rnn=nn.LSTM(6, 7, batch_first=True), out=nn.Linear(7, 3)),
    features=6,
    arguments=("x", "seq_lengths"),
)
def keyword_lengths(self, x, state=None, *, scale: float = 2.0, seq_lengths):
    """The lengths by keyword alone, behind arguments that have defaults."""
    packed = pack_padded_sequence(x, seq_lengths.cpu(), batch_first=True, enforce_sorted=False)
    return scale * self.out(self.rnn(packed, state)[1][0][-1])


@network(105, lambda: dict(lstm=nn.LSTM(6, 16, num_layers=2, batch_first=True), fc=nn.Linear(16, 4)), features=6)
def last_valid_step(self, x, lengths):
    """A one-way LSTM cannot see what comes later, so it is not packed."""
    out, _ = self.lstm(x)
    idx = (lengths - 1).view(-1, 1).expand(len(lengths), out.size(2)).unsqueeze(1)
    return self.fc(out.gather(1, idx).squeeze(1))


class StatefulLSTM(nn.Module):
    def __init__(self, n_in=5, hidden=12, layers=2, n_out=4):
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(layers, 1, hidden))
        self.c0 = nn.Parameter(torch.randn(layers, 1, hidden))
        self.lstm, self.fc = nn.LSTM(n_in, hidden, layers, batch_first=True), nn.Linear(hidden, n_out)

    def forward(self, x, lengths):
        b = x.size(0)
        state = (self.h0.expand(-1, b, -1).contiguous(), self.c0.expand(-1, b, -1).contiguous())
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, c) = self.lstm(packed, state)
        return self.fc(h[-1] + c[-1])


@network(107, lambda: dict(enc_lstm=nn.LSTM(8, 12, bidirectional=True), classifier=nn.Linear(24, 3)), features=8)
def masked_max(self, sent, sent_len):
    sent = sent.transpose(0, 1)
    packed = rnn.pack_padded_sequence(sent, sent_len.cpu(), enforce_sorted=False)
    out, _ = rnn.pad_packed_sequence(self.enc_lstm(packed)[0], padding_value=float("-inf"))
    return self.classifier(out.max(dim=0).values)


def the_masked_mean(h, mask):
    mask = mask.unsqueeze(-1).float()
    return (h * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


class MeanGRU(nn.Module):
    def __init__(self, n_in=3, hidden=16, n_out=2):
        super().__init__()
        self.gru = nn.GRU(n_in, hidden, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, n_out))

    def forward(self, x, mask):
        out, _ = self.gru(x)
        return self.head(the_masked_mean(out, mask))


@network(
    100, lambda: dict(lstm=nn.LSTM(12, 16, batch_first=True, bidirectional=True), fc=nn.Linear(32, 9)), features=12
)
def packed_bilstm(self, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    _, (h_n, _) = self.lstm(packed)
    return self.fc(torch.cat([h_n[-2], h_n[-1]], dim=1))


@network(
    129,
    lambda: dict(
        embed=nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.BatchNorm1d(12)),
        lstm=nn.LSTM(12, 12, bidirectional=True),
        fc=nn.Linear(24, 4),
    ),
    features=5,
)
def packed_data_linear(self, x, lengths):
    """Works on the packed data directly, so that nothing is computed for padding."""
    packed = pack_padded_sequence(x.transpose(0, 1), lengths.cpu(), enforce_sorted=False)
    packed = PackedSequence(self.embed(packed.data), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    out, lens = pad_packed_sequence(self.lstm(packed)[0])
    return self.fc(out.sum(0) / lens.view(-1, 1))


@network(132, lambda: dict(lstm=nn.LSTM(6, 16, proj_size=8, batch_first=True), fc=nn.Linear(8, 4)), features=6)
def projected_lstm(self, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return self.fc(self.lstm(packed)[1][0][-1])


@network(
    137,
    lambda: dict(rnn=nn.RNN(4, 12, 2, nonlinearity="relu", batch_first=True, bidirectional=True), fc=nn.Linear(24, 2)),
    features=4,
)
def relu_rnn(self, x, lengths):
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=-1.0)
    out[torch.arange(out.size(1))[None, :] >= lengths[:, None]] = 0
    return self.fc(out.sum(1) / lengths.unsqueeze(-1))


def reverse_sequence(x, lengths):
    t = torch.arange(x.size(1)).unsqueeze(0)
    idx = lengths.unsqueeze(1) - 1 - t
    idx = torch.where(idx >= 0, idx, t)
    return x.gather(1, idx.unsqueeze(-1).expand_as(x))


@network(
    126,
    lambda: dict(fwd=nn.GRU(5, 12, batch_first=True), bwd=nn.GRU(5, 12, batch_first=True), fc=nn.Linear(24, 3)),
    features=5,
)
def reversed_by_length(self, x, lengths):
    f, _ = self.fwd(x)
    b, _ = self.bwd(reverse_sequence(x, lengths))
    rows = torch.arange(x.size(0))
    return self.fc(torch.cat([f[rows, lengths - 1], b[rows, lengths - 1]], dim=1))


class DynamicRNN(nn.Module):
    """Sorts the batch for cuDNN and puts it back."""

    def __init__(self, input_size, hidden_size, num_layers=1, bidirectional=True):
        super().__init__()
        self.RNN = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x, x_len):
        x_sort_idx = torch.sort(-x_len)[1].long()
        x_unsort_idx = torch.sort(x_sort_idx)[1].long()
        x_len = x_len[x_sort_idx]
        x = x[x_sort_idx]
        x_emb_p = pack_padded_sequence(x, x_len.cpu(), batch_first=True)
        out_pack, (ht, _) = self.RNN(x_emb_p, None)
        ht = torch.transpose(ht, 0, 1)[x_unsort_idx]
        out, _ = pad_packed_sequence(out_pack, batch_first=True)
        return out[x_unsort_idx], ht


@network(101, lambda: dict(rnn=DynamicRNN(6, 10), dense=nn.Linear(40, 4)), features=6)
def sorted_and_unsorted(self, x, x_len):
    out, ht = self.rnn(x, x_len)
    mean = out.sum(1) / x_len.unsqueeze(1).to(out)
    return self.dense(torch.cat([ht.reshape(ht.size(0), -1), mean], dim=-1))


class MaskedSpectrogramCNN(nn.Module):
    def __init__(self, n_bands=8, channels=6, n_classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2, self.pool = nn.Conv2d(channels, channels, 3, padding=1), nn.AvgPool2d((1, 2))
        self.gru, self.fc = nn.GRU(channels * n_bands // 2, 10, batch_first=True), nn.Linear(10, n_classes)

    def forward(self, spec, lengths):
        m = (torch.arange(spec.size(1)) < lengths[:, None])[:, None, :, None]
        x = torch.where(m, spec.unsqueeze(1), 0.0)
        x = torch.relu(self.conv1(x)) * m
        x = self.pool(torch.relu(self.conv2(x)))
        x = x.permute(0, 2, 1, 3).flatten(2)
        h, _ = self.gru(x)
        return self.fc(h[range(len(h)), lengths - 1])


class SleepStager(nn.Module):
    """One stage per epoch of a night."""

    def __init__(self, feats=7, hidden=14, stages=5):
        super().__init__()
        self.rnn = nn.LSTM(feats, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.head = nn.Linear(2 * hidden, stages)

    def forward(self, epochs, n_epochs_lengths):
        packed = pack_padded_sequence(epochs, n_epochs_lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = self.rnn(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=epochs.size(1))
        return self.head(out)


class Subsampler(nn.Module):
    """Halves the frame rate before the recurrent layer, and the lengths with it."""

    def __init__(self, n_in=8, c=12, n_out=5):
        super().__init__()
        self.conv = nn.Conv1d(n_in, c, kernel_size=3, stride=2, padding=1)
        self.gru, self.fc = nn.GRU(c, c, batch_first=True, bidirectional=True), nn.Linear(2 * c, n_out)

    def forward(self, x, lengths):
        inside = torch.arange(x.size(1)) < lengths[:, None]
        x = torch.where(inside[:, :, None], x, torch.zeros_like(x))
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        lengths = (lengths + 1) // 2
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, h = self.gru(packed)
        return self.fc(torch.cat(tuple(h), dim=-1))


@network(
    102,
    lambda: dict(gru=nn.GRU(10, 12, num_layers=2, bidirectional=True), out=nn.Linear(24, 5)),
    features=10,
    time_first=True,
)
def time_first_gru(self, frames: Tensor, frame_lengths: Tensor) -> Tensor:
    """frames: [time, batch, n_mels]; one answer per utterance."""
    packed = pack_padded_sequence(frames, frame_lengths.cpu(), enforce_sorted=False)
    padded, lens = pad_packed_sequence(self.gru(packed)[0])
    return self.out(padded.sum(dim=0) / lens.unsqueeze(1))


class TextGRU(nn.Module):
    def __init__(self, vocab_size=80, emb=12, hidden=16, classes=2):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, emb, padding_idx=0)
        self.gru = nn.GRU(emb, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(2 * hidden, classes)

    def forward(self, text, text_lengths):
        e = self.dropout(self.embedding(text))
        e = pack_padded_sequence(e, text_lengths.to("cpu"), batch_first=True, enforce_sorted=False)
        _, hidden = self.gru(e)
        hidden = self.dropout(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1))
        return self.fc(hidden)


dict_output = seeded(120, MultiTask, features=6, output="mortality")
learned_initial_state = seeded(104, StatefulLSTM, features=5)
masked_mean = seeded(106, MeanGRU, verdict="warning", features=3, second="mask")
spectrogram_masked = seeded(139, MaskedSpectrogramCNN, features=8)
step_tagger = seeded(118, SleepStager, features=7, per_step=True)
strided_conv = seeded(127, Subsampler, features=8)
token_gru = seeded(121, TextGRU, vocabulary=80)
