import math

import torch
from torch import nn


class Embeddings(nn.Module):
    def __init__(self, vocab_size, hidden, positions):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(positions).unsqueeze(0))

    def forward(self, input_ids):
        position_ids = self.position_ids[:, : input_ids.size(1)]
        e = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(e))


class Layer(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.dense, self.norm1 = nn.Linear(hidden, hidden), nn.LayerNorm(hidden, eps=1e-12)
        self.intermediate, self.output = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=1e-12)

    def transpose_for_scores(self, x):
        return x.view(*x.size()[:-1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = (self.transpose_for_scores(f(x)) for f in (self.query, self.key, self.value))
        probabilities = nn.functional.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size), dim=-1)
        context = (probabilities @ v).permute(0, 2, 1, 3).contiguous()
        context = context.view(*context.size()[:-2], self.heads * self.size)
        x = self.norm1(self.dense(context) + x)
        return self.norm2(self.output(nn.functional.gelu(self.intermediate(x))) + x)


class BertForClassification(nn.Module):
    def __init__(self, vocab_size=90, hidden=16, heads=4, layers=2, positions=128, num_labels=3):
        super().__init__()
        self.embeddings = Embeddings(vocab_size, hidden, positions)
        self.encoder = nn.ModuleList([Layer(hidden, heads) for _ in range(layers)])
        self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, num_labels)

    def forward(self, input_ids):
        h = self.embeddings(input_ids)
        for layer in self.encoder:
            h = layer(h)
        return self.classifier(torch.tanh(self.pooler(h[:, 0])))


def make():
    torch.manual_seed(397)
    return BertForClassification()
