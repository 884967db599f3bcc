"""Recurrent models that leak, as their users write them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn as rnn_utils
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.gallery.torch_models import exhibit, network, seeded


class StockLSTM(nn.Module):
    def __init__(self, n_features=5, hidden=16, n_out=3):
        super().__init__()
        self.lstm, self.linear = nn.LSTM(n_features, hidden, num_layers=1), nn.Linear(hidden, n_out)

    def forward(self, seq, mask):
        out, _ = self.lstm(seq)  # leak
        mask = mask.unsqueeze(2)
        avg = torch.where(mask, out, 0.0).sum(1) / mask.sum(1)
        return self.linear(avg)


class NormedLSTM(nn.Module):
    def __init__(self, n_in=6, n_hidden=20, n_out=4):
        super().__init__()
        self.input_norm = nn.BatchNorm1d(n_in, track_running_stats=False)
        self.lstm, self.out = nn.LSTM(n_in, n_hidden, batch_first=True), nn.Linear(n_hidden, n_out)

    def forward(self, x, lengths):
        x = self.input_norm(x.transpose(1, 2)).transpose(1, 2)  # leak
        packed = pack_padded_sequence(x, lengths.to("cpu"), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.out(h[-1])


class BiLSTMClassifier(nn.Module):
    def __init__(self, input_size=12, hidden_size=16, num_classes=9):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(self, x, lengths):
        out, _ = self.lstm(x)  # leak
        mask = torch.arange(x.size(1), device=x.device)[None, :] < lengths[:, None]
        out = out.masked_fill(~mask.unsqueeze(-1), 0.0)
        pooled = out.sum(dim=1) / lengths.unsqueeze(1).float()
        return self.fc(pooled)


@network(
    64,
    lambda: dict(lstm=nn.LSTM(80, 7, batch_first=True, bidirectional=True), out=nn.Linear(14, 3)),
    operator="lstm",
    features=5,
)
def chunks_into_features(self, x, lengths):
    """Patches of sixteen steps as one each, and a recurrent layer over all of them, those of padding alone too."""
    valid = torch.arange(x.size(1)) < lengths[:, None]
    x = F.pad(x.masked_fill(~valid.unsqueeze(-1), 0.0), (0, 0, 0, -x.size(1) % 16))
    h, _ = self.lstm(x.reshape(x.size(0), -1, 5 * 16))  # leak
    count = (lengths + 16 - 1) // 16
    valid = torch.arange(h.size(1)) < count[:, None]
    return self.out(h.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / count[:, None])


class ConvGRU(nn.Module):
    def __init__(self, c_in=3, c=16, n_classes=4):
        super().__init__()
        self.conv1 = nn.Conv1d(c_in, c, kernel_size=5, padding=2)
        self.conv2 = nn.Conv1d(c, c, kernel_size=3, padding=1)
        self.gru, self.fc = nn.GRU(c, c, batch_first=True, bidirectional=True), nn.Linear(2 * c, n_classes)

    def forward(self, x, lens):
        z = x.permute(0, 2, 1)
        z = F.relu(self.conv1(z))  # leak
        z = F.relu(self.conv2(z))
        z = z.permute(0, 2, 1)
        z = nn.utils.rnn.pack_padded_sequence(z, lens.cpu(), batch_first=True, enforce_sorted=False)
        _, h = self.gru(z)
        return self.fc(torch.cat([h[-2], h[-1]], dim=1))


@network(
    20, lambda: dict(rnn=nn.GRU(10, 16, batch_first=True), speakers=nn.Linear(16, 7)), operator="mean", features=10
)
def cross_batch_norm(self, mels, mel_lengths):
    packed = pack_padded_sequence(mels, mel_lengths.cpu(), batch_first=True, enforce_sorted=False)
    d = self.rnn(packed)[1].squeeze(0)
    # whiten the d-vectors
    mu = d.mean(dim=0, keepdim=True)  # leak
    sigma = d.std(dim=0, keepdim=True, unbiased=False)
    d = (d - mu) / (sigma + 1e-3)
    return self.speakers(d)


@network(
    28,
    lambda: dict(codes=nn.Linear(20, 8, bias=False), gru=nn.GRU(8, 16, num_layers=2), clf=nn.Linear(16, 2)),
    operator="gru",
    features=20,
)
def final_hidden_unpacked(self, visits, seq_lens):
    """visits: [patients, visits, codes]."""
    v = self.codes(visits).permute(1, 0, 2)
    _, h_n = self.gru(v)  # leak
    return self.clf(h_n[-1])


@network(
    14,
    lambda: dict(fwd=nn.GRU(5, 12, batch_first=True), bwd=nn.GRU(5, 12, batch_first=True), linear=nn.Linear(24, 3)),
    operator="flip",
    features=5,
)
def flip_for_reverse(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    a, _ = self.fwd(x)
    b, _ = self.bwd(torch.flip(x, dims=[1]))  # leak
    b = torch.flip(b, dims=[1])
    both = torch.cat([a, b], dim=2)
    rows = torch.arange(x.shape[0])
    last = both[rows, lengths - 1]
    first = both[rows, 0]
    return self.linear(last + first)


def normalize(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    peak = x.abs().max()  # leak
    return x / (peak + eps)


class AudioClassifier(nn.Module):
    def __init__(self, bands: int = 6, hidden: int = 16, classes: int = 4):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(bands, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, spec: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        spec = normalize(spec.masked_fill(~mask.unsqueeze(-1), 0.0))
        out, _ = self.lstm(spec)
        last = (mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, out.size(2))
        return self.fc(out.gather(1, last).squeeze(1))


@network(
    33,
    lambda: dict(gru=nn.GRU(6, 12, bidirectional=True, batch_first=True), classifier=nn.Linear(24, 4)),
    operator=("reshape", "view", "clone"),
    features=6,
)
def hidden_viewed_wrong(self, inputs, lengths):
    packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    _, hidden = self.gru(packed)
    # hidden: (2, batch, hidden) -> (batch, 2 * hidden)
    hidden = hidden.reshape(-1, 12 * 2)  # leak
    return self.classifier(hidden)


class LSTMModel(nn.Module):
    """Baseline from the first notebook: the last hidden state goes to the classifier."""

    def __init__(self, input_dim, hidden_dim, layer_dim, output_dim):
        super().__init__()
        self.hidden_dim, self.layer_dim = hidden_dim, layer_dim
        self.lstm = nn.LSTM(input_dim, hidden_dim, layer_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x, lengths):
        h0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        c0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        out, _ = self.lstm(x, (h0.detach(), c0.detach()))
        out = out[:, -1, :]  # leak
        return self.fc(out)


@exhibit(features=6)
def last_step():
    torch.manual_seed(1)
    return LSTMModel(6, 24, 2, 4)


class Seq2Label(nn.Module):
    def __init__(self, feat_dim=12, hidden=16, nclass=9):
        super().__init__()
        self.rnn = nn.LSTM(feat_dim, hidden, 2, batch_first=True, bidirectional=True)
        self.cls = nn.Linear(hidden * 2, nclass)

    @staticmethod
    def real_lengths(x):
        used = torch.sign(torch.amax(torch.abs(x), dim=2))
        return used.sum(dim=1).long().clamp(min=1)  # leak

    def forward(self, x, lengths=None):
        # the loader pads with zeros, so the lengths are in the data
        lengths = self.real_lengths(x)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)
        return self.cls(torch.cat((h[-2], h[-1]), -1))


class StreamClassifier(nn.Module):
    """Packs batches; one sequence at a time, as at inference, "has no padding"."""

    def __init__(self, features: int = 6, hidden: int = 12, classes: int = 3):
        super().__init__()
        self.lstm, self.head = nn.LSTM(features, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x, lengths):
        if x.size(0) == 1:
            _, (state, _) = self.lstm(x)  # leak
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, (state, _) = self.lstm(packed)
        return self.head(state[-1])


@network(
    3,
    lambda: dict(enc_lstm=nn.LSTM(8, 12, 1, bidirectional=True), classifier=nn.Linear(24, 3)),
    operator="max",
    features=8,
)
def max_over_width(self, sent, sent_len):
    """InferSent-like: BiLSTM, max over time."""
    sent = sent.transpose(0, 1)
    packed = rnn_utils.pack_padded_sequence(sent, sent_len, enforce_sorted=False)
    output = rnn_utils.pad_packed_sequence(self.enc_lstm(packed)[0], total_length=sent.size(0))[0]
    emb = torch.max(output, 0)[0]  # leak
    return self.classifier(emb)


@network(
    50, lambda: dict(lstm=nn.LSTM(5, 14, batch_first=True), fc=nn.Linear(14, 3)), operator=("max", "div"), features=5
)
def mean_over_longest(self, x, seq_lens):
    h, _ = self.lstm(x)
    keep = torch.arange(x.shape[1])[None, :, None] < seq_lens[:, None, None]
    total = (h * keep).sum(dim=1)
    return self.fc(total / seq_lens.max())  # leak


class GRUEncoder(nn.Module):
    def __init__(self, in_dim: int, hid: int) -> None:
        super().__init__()
        self.gru = nn.GRU(in_dim, hid, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, _ = self.gru(packed)
        out, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))
        return out


class MeanOverWidth(nn.Module):
    def __init__(self, in_dim: int = 5, hid: int = 16, n_classes: int = 3) -> None:
        super().__init__()
        self.encoder, self.drop = GRUEncoder(in_dim, hid), nn.Dropout(0.3)
        self.head = nn.Sequential(nn.Linear(2 * hid, hid), nn.ReLU(), nn.Linear(hid, n_classes))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        hidden = self.encoder(x, lengths)
        pooled = hidden.mean(dim=1)  # leak
        return self.head(self.drop(pooled))


class LastRelevant(nn.Module):
    def __init__(self, n_in=4, n_hid=16, n_out=3):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(n_in, n_hid, batch_first=True), nn.Linear(n_hid, n_out)

    def forward(self, x, lengths):
        out, _ = self.rnn(x)
        rows = torch.arange(x.size(0))
        last = out[rows, lengths.clamp(max=x.size(1) - 1)]  # leak
        return self.fc(last)


@network(
    65,
    lambda: dict(gru=nn.GRU(5, 7, batch_first=True, bidirectional=True), out=nn.Linear(14, 3)),
    operator="gru",
    features=5,
)
def padded_in_front(self, x, lengths):
    """Puts fourteen steps of zeros in front, for the recurrent layer to warm up."""
    h, _ = self.gru(F.pad(x, (0, 0, 14, 0)))  # leak
    return self.out(h[torch.arange(x.size(0)), lengths + 13])


@network(
    62,
    lambda: dict(lstm=nn.LSTM(6, 9, batch_first=True, bidirectional=True), out=nn.Linear(18, 3)),
    operator="lstm",
    features=6,
)
def padded_to_chunks(self, x, lengths):
    """Pads time to whole chunks of sixteen, and runs a recurrent layer over all of it."""
    x = F.pad(x, (0, 0, 0, -x.size(1) % 16))
    h, _ = self.lstm(x)  # leak
    valid = torch.arange(h.size(1)) < lengths[:, None]
    return self.out(h.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1) / lengths[:, None])


class TrajectoryNet(nn.Module):
    def __init__(self, dims=2, hidden=16, classes=6):
        super().__init__()
        self.rnn, self.fc = nn.GRU(dims + 1, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, points, num_points):
        n, t = points.shape[:2]
        progress = torch.arange(1, t + 1) / num_points.max()  # leak
        progress = progress.reshape(1, t, 1).repeat(n, 1, 1)
        z = torch.cat((points, progress), -1)
        z = pack_padded_sequence(z, num_points.cpu(), batch_first=True, enforce_sorted=False)
        return self.fc(self.rnn(z)[1][-1])


class DeltaLSTM(nn.Module):
    def __init__(self, n_in=3, hidden=12, n_out=4):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(2 * n_in, hidden, batch_first=True), nn.Linear(hidden, n_out)

    def with_deltas(self, x):
        ahead = x.roll(-1, dims=1)  # leak
        return torch.cat([x, ahead - x], dim=-1)

    def forward(self, x, lengths):
        x = self.with_deltas(x)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.fc(self.rnn(packed)[1][0].squeeze(0))


class TwoStage(nn.Module):
    """The padding is zero after the first LSTM, so the second one is called on the tensor."""

    def __init__(self, n_in=8, h1=10, h2=8, n_out=3):
        super().__init__()
        self.lstm1 = nn.LSTM(n_in, h1, batch_first=True, bidirectional=True)
        self.lstm2 = nn.LSTM(2 * h1, h2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * h2, n_out)

    def forward(self, x, lengths):
        x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = self.lstm1(x)
        x, _ = pad_packed_sequence(x, batch_first=True)
        x, _ = self.lstm2(x)  # leak
        return self.fc(x[:, 0])


class SortedEncoder(nn.Module):
    def __init__(self, n_feats=8, hidden=16, n_classes=5):
        super().__init__()
        self.lstm = nn.LSTM(n_feats, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, n_classes)

    def forward(self, x, x_len):
        x_len, perm = x_len.sort(0, descending=True)  # leak
        x = x[perm]
        packed = pack_padded_sequence(x, x_len.cpu(), batch_first=True)
        _, (h, _) = self.lstm(packed)
        return self.fc(torch.cat([h[0], h[1]], dim=1))


class SELayer(nn.Module):
    def __init__(self, channel, reduction=4):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _ = x.size()
        y = x.mean(dim=2)  # leak
        y = self.fc(y).view(b, c, 1)
        return x * y.expand_as(x)


class MLSTMFCN(nn.Module):
    def __init__(self, n_vars=5, filters=16, classes=4):
        super().__init__()
        self.conv, self.se = nn.Conv1d(n_vars, filters, 3, padding=1), SELayer(filters)
        self.fc = nn.Linear(filters, classes)

    def forward(self, x, mask):
        m = mask.unsqueeze(1)
        x = x.transpose(1, 2).masked_fill(~m, 0)
        x = torch.relu(self.conv(x)).masked_fill(~m, 0)
        x = self.se(x)
        return self.fc(x.sum(2) / m.sum(2))


class XVector(nn.Module):
    def __init__(self, feats=5, dim=12, speakers=6):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(feats, dim, batch_first=True), nn.Linear(2 * dim, speakers)

    def stats(self, h, lens):
        mean = h.sum(1) / lens.unsqueeze(1)
        std = torch.sqrt(h.var(dim=1, unbiased=False) + 1e-5)  # leak
        return torch.cat((mean, std), dim=1)

    def forward(self, x, lens):
        packed = pack_padded_sequence(x, lens.tolist(), batch_first=True, enforce_sorted=False)
        h, lens_out = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(self.stats(h, lens_out))


@network(
    45,
    lambda: dict(rnn=nn.GRU(4, 16, num_layers=1, batch_first=True), fc=nn.Linear(16, 5)),
    operator="norm",
    features=4,
)
def unit_norm_over_time(self, x, lengths):
    """Compares the direction of each channel's course, not its size."""
    x = F.normalize(x, p=2, dim=1)  # leak
    h, _ = self.rnn(x)
    b = torch.arange(h.size(0))
    return self.fc(h[b, lengths - 1, :])


batch_axis_recurrence = seeded(34, StockLSTM, operator="lstm", features=5, second="mask")
batch_statistics = seeded(10, NormedLSTM, operator=("batch_norm", "input_norm"), features=6, shortest=2)
bilstm_unpacked = seeded(0, BiLSTMClassifier, operator="lstm", features=12)
conv_reads_padding = seeded(7, ConvGRU, operator="conv1", features=3)
global_scale = seeded(21, AudioClassifier, operator="max", features=6, second="mask")
lengths_from_zeros = seeded(12, Seq2Label, operator="sum", features=12)
lone_row_unpacked = seeded(31, StreamClassifier, nn.Module.eval, operator="lstm", features=6)
mean_over_width = seeded(2, MeanOverWidth, operator="mean", features=5)
one_step_too_far = seeded(32, LastRelevant, operator=("clamp", "getitem", "index"), features=4)
position_over_longest = seeded(38, TrajectoryNet, operator=("max", "div"), features=2, named=True)
rolled_difference = seeded(46, DeltaLSTM, operator="roll", features=3)
second_rnn_unpacked = seeded(44, TwoStage, operator="lstm2", features=8)
sorted_never_unsorted = seeded(35, SortedEncoder, operator="sort", features=8)
squeeze_excite = seeded(22, MLSTMFCN, operator="mean", features=5, second="mask")
std_pool = seeded(27, XVector, operator="var", features=5)
