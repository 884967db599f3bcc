import torch
from torch import nn


class DeepConvLSTM(nn.Module):
    """Activity recognition: four valid convolutions along time for each sensor, two LSTMs, the last state."""

    def __init__(self, sensors=6, filters=4, hidden=12, classes=5):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1 if i == 0 else filters, filters, (5, 1)) for i in range(4)])
        self.lstm = nn.LSTM(sensors * filters, hidden, num_layers=2, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x):
        x = x.unsqueeze(1)
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = x.permute(0, 2, 1, 3)
        x = x.reshape(x.shape[0], x.shape[1], -1)
        out, _ = self.lstm(x)
        return self.classifier(self.dropout(out[:, -1, :]))


def make():
    torch.manual_seed(313)
    return DeepConvLSTM()
