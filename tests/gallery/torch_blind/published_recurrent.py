"""Published architectures: recurrent models that take no lengths, as their users write them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.gallery.torch_models import seeded, with_statistics


class CRNN(nn.Module):
    """Sound events: 2d convolutions and pools over time and bands, a BiGRU over what is left of time."""

    def __init__(self, bands=16, channels=6, hidden=8, events=4):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d((2, 4)),
        )
        self.gru = nn.GRU(channels * (bands // 8), hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, events)

    def forward(self, spectrogram):
        maps = self.cnn(spectrogram.unsqueeze(1))
        frames = maps.permute(0, 2, 1, 3).flatten(2)
        states, _ = self.gru(frames)
        return self.fc(states.mean(1))


class DeepConvLSTM(nn.Module):
    """Activity recognition: four valid convolutions along time for each sensor, two LSTMs, the last state."""

    def __init__(self, sensors=6, filters=4, hidden=12, classes=5):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1 if i == 0 else filters, filters, (5, 1)) for i in range(4)])
        self.lstm = nn.LSTM(sensors * filters, hidden, num_layers=2, batch_first=True)
        self.dropout, self.classifier = nn.Dropout(0.5), nn.Linear(hidden, classes)

    def forward(self, x):
        x = x.unsqueeze(1)
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = x.permute(0, 2, 1, 3)
        x = x.reshape(x.shape[0], x.shape[1], -1)
        out, _ = self.lstm(x)
        return self.classifier(self.dropout(out[:, -1, :]))


class GRUFCN(nn.Module):
    def __init__(self, c_in=1, hidden=6, c_out=3):
        super().__init__()
        self.gru, self.fcn = nn.GRU(c_in, hidden, batch_first=True), nn.Sequential()
        for i, (n, k) in enumerate(zip((8, 12, 8), (8, 5, 3), strict=True)):
            self.fcn.add_module(f"conv{i}", nn.Conv1d((c_in, 8, 12)[i], n, k, padding="same"))
            self.fcn.add_module(f"bn{i}", nn.BatchNorm1d(n))
            self.fcn.add_module(f"relu{i}", nn.ReLU())
        self.fc = nn.Linear(hidden + 8, c_out)

    def forward(self, x):
        state = self.gru(x.transpose(1, 2))[1].squeeze(0)
        pooled = self.fcn(x).mean(-1)
        return self.fc(torch.cat([pooled, state], -1))


class LSTMFCN(nn.Module):
    def __init__(self, n_vars=4, cells=8, n_classes=3):
        super().__init__()
        self.lstm, self.dropout = nn.LSTM(n_vars, cells, batch_first=True), nn.Dropout(0.8)
        self.conv1, self.bn1 = nn.Conv1d(n_vars, 8, 8, padding="same"), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 16, 5, padding="same"), nn.BatchNorm1d(16)
        self.conv3, self.bn3, self.relu = nn.Conv1d(16, 8, 3, padding="same"), nn.BatchNorm1d(8), nn.ReLU()
        self.fc = nn.Linear(cells + 8, n_classes)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        h = self.dropout(h[-1])
        c = x.transpose(1, 2)
        c = self.relu(self.bn1(self.conv1(c)))
        c = self.relu(self.bn2(self.conv2(c)))
        c = self.relu(self.bn3(self.conv3(c)))
        c = torch.mean(c, 2)
        return self.fc(torch.cat((h, c), dim=1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, reduction=4):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        scale = self.fc(self.gap(x).squeeze(-1)).unsqueeze(-1)
        return x * scale.expand_as(x)


class ConvBlock(nn.Sequential):
    def __init__(self, ni, nf, k, se=True):
        layers = [nn.Conv1d(ni, nf, k, padding="same"), nn.BatchNorm1d(nf, eps=1e-3), nn.ReLU()]
        super().__init__(*layers, *([SqueezeExcite(nf)] if se else []))


class MLSTMFCN(nn.Module):
    def __init__(self, n_vars=6, cells=8, n_classes=5):
        super().__init__()
        self.lstm = nn.LSTM(n_vars, cells, num_layers=1, batch_first=True)
        self.fcn = nn.Sequential(ConvBlock(n_vars, 8, 7), ConvBlock(8, 16, 5), ConvBlock(16, 8, 3, se=False))
        self.gap, self.fc = nn.AdaptiveAvgPool1d(1), nn.Linear(cells + 8, n_classes)

    def forward(self, x):
        last = self.lstm(x)[0][:, -1]
        pooled = self.gap(self.fcn(x.permute(0, 2, 1))).squeeze(2)
        return self.fc(torch.cat([last, pooled], dim=1))


class PyramidLayer(nn.Module):
    """Joins each two neighbouring steps, a last one without a neighbour is dropped, and reads on."""

    def __init__(self, n_in, hidden):
        super().__init__()
        self.blstm = nn.LSTM(2 * n_in, hidden, batch_first=True, bidirectional=True)

    def forward(self, x):
        b, t, f = x.shape
        pairs = x[:, : t // 2 * 2].reshape(b, t // 2, 2 * f)
        return self.blstm(pairs)[0]


class Listener(nn.Module):
    def __init__(self, n_mels=6, hidden=5, n_out=4):
        super().__init__()
        self.bottom = nn.LSTM(n_mels, hidden, batch_first=True, bidirectional=True)
        self.pyramid = nn.Sequential(PyramidLayer(2 * hidden, hidden), PyramidLayer(2 * hidden, hidden))
        self.fc = nn.Linear(2 * hidden, n_out)

    def forward(self, mels):
        return self.fc(self.pyramid(self.bottom(mels)[0]).mean(dim=1))


class RecurrentConvText(nn.Module):
    """The words between their left and right context, and the largest value of each feature (RCNN)."""

    def __init__(self, vocab=50, dim=12, hidden=8, n_out=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.lstm = nn.LSTM(dim, hidden, bidirectional=True, batch_first=True)
        self.mix, self.fc, self.hidden = nn.Linear(dim + 2 * hidden, 10), nn.Linear(10, n_out), hidden

    def forward(self, text):
        words = self.embedding(text)
        out, _ = self.lstm(words)
        both = torch.cat([out[..., : self.hidden], words, out[..., self.hidden :]], 2)
        features = torch.tanh(self.mix(both)).permute(0, 2, 1)
        return self.fc(F.max_pool1d(features, features.shape[2]).squeeze(2))


crnn = seeded(321, CRNN, with_statistics, features=16, shortest=4)
deep_conv_lstm = seeded(313, DeepConvLSTM, features=6, shortest=17)
gru_fcn = seeded(322, GRUFCN, with_statistics, features=1, channels_said=True)
lstm_fcn = seeded(304, LSTMFCN, with_statistics, features=4)
mlstm_fcn = seeded(305, MLSTMFCN, with_statistics, features=6)
pyramidal_lstm = seeded(410, Listener, features=6, shortest=4)
recurrent_conv_text = seeded(508, RecurrentConvText, vocabulary=50)
