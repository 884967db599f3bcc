import torch
import torch.nn as nn


class LSTMClassifier(nn.Module):
    def __init__(self, input_dim=5, hidden_dim=12, layer_dim=2, output_dim=4):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.layer_dim = layer_dim
        self.lstm = nn.LSTM(input_dim, hidden_dim, layer_dim, batch_first=True)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x):
        h0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        c0 = torch.zeros(self.layer_dim, x.size(0), self.hidden_dim)
        _, (h_n, _) = self.lstm(x, (h0, c0))
        return self.fc(h_n[-1])


def make():
    torch.manual_seed(331)
    return LSTMClassifier()
