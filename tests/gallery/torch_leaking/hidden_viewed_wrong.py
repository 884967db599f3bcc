import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


class BiGRUClassifier(nn.Module):
    def __init__(self, input_size=6, hidden_size=12, num_classes=4):
        super().__init__()
        self.hidden_size = hidden_size
        self.gru = nn.GRU(input_size, hidden_size, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(hidden_size * 2, num_classes)

    def forward(self, inputs, lengths):
        packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, hidden = self.gru(packed)
        # hidden: (2, batch, hidden) -> (batch, 2 * hidden)
        hidden = hidden.reshape(-1, self.hidden_size * 2)  # leak
        return self.classifier(hidden)


def make():
    torch.manual_seed(33)
    return BiGRUClassifier()
