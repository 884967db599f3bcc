import torch
import torch.nn as nn
import torch.nn.functional as F


class TextCNN(nn.Module):
    """Convolutions of three widths over word vectors, the largest answer of each filter."""

    def __init__(self, vocab_size=60, embed_dim=10, num_filters=6, sizes=(3, 4, 5), num_classes=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.convs = nn.ModuleList([nn.Conv2d(1, num_filters, (k, embed_dim)) for k in sizes])
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(len(sizes) * num_filters, num_classes)

    def forward(self, tokens):
        x = self.embedding(tokens).unsqueeze(1)
        maps = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        pooled = [m.max(dim=2).values for m in maps]
        return self.fc(self.dropout(torch.cat(pooled, dim=1)))


def make():
    torch.manual_seed(318)
    return TextCNN()
