import torch
import torch.nn as nn
from torch.nn.utils import rnn as rnn_utils


class SentencePool(nn.Module):
    """InferSent-like: BiLSTM, max over time."""

    def __init__(self, dim=8, hidden=12, classes=3):
        super().__init__()
        self.enc_lstm = nn.LSTM(dim, hidden, 1, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden, classes)

    def forward(self, sent, sent_len):
        sent = sent.transpose(0, 1)
        packed = rnn_utils.pack_padded_sequence(sent, sent_len, enforce_sorted=False)
        output = rnn_utils.pad_packed_sequence(self.enc_lstm(packed)[0], total_length=sent.size(0))[0]
        emb = torch.max(output, 0)[0]  # leak
        return self.classifier(emb)


def make():
    torch.manual_seed(3)
    return SentencePool()
