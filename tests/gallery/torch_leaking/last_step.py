import torch
import torch.nn as nn


class LSTMModel(nn.Module):
    """Baseline from the first notebook: the last hidden state goes to the classifier."""

    def __init__(self, input_dim, hidden_dim, layer_dim, output_dim):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.layer_dim = layer_dim
        self.lstm = nn.LSTM(input_dim, hidden_dim, layer_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x, lengths):
        h0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        c0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        out, _ = self.lstm(x, (h0.detach(), c0.detach()))
        out = out[:, -1, :]  # leak
        return self.fc(out)


def make():
    torch.manual_seed(1)
    return LSTMModel(6, 24, 2, 4)
