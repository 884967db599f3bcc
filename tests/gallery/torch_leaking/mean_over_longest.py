import torch
from torch import nn


class AvgPoolLSTM(nn.Module):
    def __init__(self, input_size=5, hidden_size=14, num_classes=3):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x, seq_lens):
        h, _ = self.lstm(x)
        keep = torch.arange(x.shape[1])[None, :, None] < seq_lens[:, None, None]
        total = (h * keep).sum(dim=1)
        return self.fc(total / seq_lens.max())  # leak


def make():
    torch.manual_seed(50)
    return AvgPoolLSTM()
