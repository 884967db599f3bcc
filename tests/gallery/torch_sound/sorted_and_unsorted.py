import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


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


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = DynamicRNN(6, 10)
        self.dense = nn.Linear(20 + 20, 4)

    def forward(self, x, x_len):
        out, ht = self.rnn(x, x_len)
        mean = out.sum(1) / x_len.unsqueeze(1).to(out)
        return self.dense(torch.cat([ht.reshape(ht.size(0), -1), mean], dim=-1))


def make():
    torch.manual_seed(101)
    return Classifier()
