import torch
import torch.nn.functional as F
from torch import nn


class RecurrentConvText(nn.Module):
    """The words between their left and right context, and the largest value of each feature (RCNN)."""

    def __init__(self, vocab=50, dim=12, hidden=8, n_out=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.lstm = nn.LSTM(dim, hidden, bidirectional=True, batch_first=True)
        self.mix = nn.Linear(dim + 2 * hidden, 10)
        self.fc = nn.Linear(10, n_out)
        self.hidden = hidden

    def forward(self, text):
        words = self.embedding(text)
        out, _ = self.lstm(words)
        both = torch.cat([out[..., : self.hidden], words, out[..., self.hidden :]], 2)
        features = torch.tanh(self.mix(both)).permute(0, 2, 1)
        return self.fc(F.max_pool1d(features, features.shape[2]).squeeze(2))


def make():
    torch.manual_seed(508)
    return RecurrentConvText()
