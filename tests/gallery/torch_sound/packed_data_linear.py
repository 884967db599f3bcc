import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class PackedMLPLSTM(nn.Module):
    """Works on the packed data directly, so that nothing is computed for padding."""

    def __init__(self, n_in=5, d=12, n_out=4):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(n_in, d), nn.ReLU(), nn.BatchNorm1d(d))
        self.lstm = nn.LSTM(d, d, bidirectional=True)
        self.fc = nn.Linear(2 * d, n_out)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x.transpose(0, 1), lengths.cpu(), enforce_sorted=False)
        packed = PackedSequence(
            self.embed(packed.data), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        out, lens = pad_packed_sequence(self.lstm(packed)[0])
        return self.fc(out.sum(0) / lens.view(-1, 1))


def make():
    torch.manual_seed(129)
    return PackedMLPLSTM()
