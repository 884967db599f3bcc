import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class StreamClassifier(nn.Module):
    """Packs batches; one sequence at a time, as at inference, "has no padding"."""

    def __init__(self, features: int = 6, hidden: int = 12, classes: int = 3):
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x, lengths):
        if x.size(0) == 1:
            _, (state, _) = self.lstm(x)  # leak
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, (state, _) = self.lstm(packed)
        return self.head(state[-1])


def make():
    torch.manual_seed(31)
    return StreamClassifier().eval()
