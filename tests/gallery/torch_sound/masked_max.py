import torch
from torch import nn
from torch.nn.utils import rnn


class InferSent(nn.Module):
    def __init__(self, dim=8, hidden=12, classes=3):
        super().__init__()
        self.enc_lstm = nn.LSTM(dim, hidden, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, classes)

    def forward(self, sent, sent_len):
        sent = sent.transpose(0, 1)
        packed = rnn.pack_padded_sequence(sent, sent_len.cpu(), enforce_sorted=False)
        out, _ = rnn.pad_packed_sequence(self.enc_lstm(packed)[0], padding_value=float("-inf"))
        return self.classifier(out.max(dim=0).values)


def make():
    torch.manual_seed(107)
    return InferSent()
