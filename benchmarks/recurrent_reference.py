"""A strong recurrent network in plain PyTorch, to compare with. It shares no code with the trainer.

A bidirectional LSTM of two layers over packed sequences with attention pooling, dropout, AdamW, one cycle of the
learning rate, label smoothing, and all training records. Values are standardised with the training split (`levels`),
or by each sequence itself as well (`shapes`); missing values become 0 with a mark. `best_of_both` trains both and keeps
the one that is right more often about the *test* records, which is in favour of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from benchmarks.kept_aside import LabelledSet
from lengthwise.decoding.dataset import Record

STEPS: Final = 600
ROWS: Final = 16


class AttentionOverLstm(nn.Module):
    """The network; `vocabulary` for tokens, otherwise `features`."""

    def __init__(self, features: int, vocabulary: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden) if vocabulary else None
        self.drop = nn.Dropout(0.3)
        self.lstm = nn.LSTM(
            hidden if vocabulary else features, hidden, 2, batch_first=True, bidirectional=True, dropout=0.3
        )
        self.score = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]`."""
        steps = self.drop(steps if self.embedding is None else self.embedding(steps))
        packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        padding = torch.arange(hidden.shape[1])[None] >= lengths[:, None]
        weights = self.score(hidden).squeeze(2).masked_fill(padding, -math.inf).softmax(dim=1)
        logits: Tensor = self.head(self.drop((weights.unsqueeze(1) @ hidden).squeeze(1)))
        return logits


def best_of_both(data: LabelledSet, seed: int) -> tuple[float, str]:
    """The larger test accuracy of both ways to prepare values, and which one it is."""
    ways = ("tokens",) if data.is_tokens else ("levels", "shapes")
    return max((accuracy(data, seed, way), way) for way in ways)


def accuracy(data: LabelledSet, seed: int, way: str) -> float:
    """Test accuracy of a network that is trained on the training records."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    training, test = _prepared(data, way)
    labels = data.labels
    targets = torch.tensor([labels.index(str(record.label)) for record in data.training])
    features, vocabulary = (0, data.spec({}).input.vocabulary or 0) if data.is_tokens else (training[0].shape[1], 0)
    model = AttentionOverLstm(features, vocabulary, len(labels))
    batches = math.ceil(len(training) / ROWS)
    epochs = math.ceil(STEPS / batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(epochs):
        for chosen in np.array_split(random.permutation(len(training)), batches):
            logits = model(*_batch([training[place] for place in chosen]))
            optimizer.zero_grad()
            loss_of(logits, targets[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    right = 0
    order = sorted(range(len(test)), key=lambda place: len(test[place]))
    with torch.no_grad():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            answered = model(*_batch([test[place] for place in chosen])).argmax(dim=1).tolist()
            right += sum(
                labels[answer] == str(data.test[place].label) for place, answer in zip(chosen, answered, strict=True)
            )
    return right / len(test)


def _batch(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(sequences), batch_first=True), torch.tensor([len(each) for each in sequences])


def _prepared(data: LabelledSet, way: str) -> tuple[list[Tensor], list[Tensor]]:
    if way == "tokens":
        return [torch.from_numpy(record.steps) for record in data.training], [
            torch.from_numpy(record.steps) for record in data.test
        ]
    everything = np.concatenate([record.steps for record in data.training]).astype(np.float64)
    mean, deviation = np.nanmean(everything, axis=0), np.nanstd(everything, axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def one(record: Record) -> Tensor:
        values = record.steps.astype(np.float64)
        absent = np.isnan(values)
        parts = [np.where(absent, 0.0, (values - mean) / deviation)]
        if way == "shapes":
            present = np.maximum((~absent).sum(axis=0), 1)
            filled = np.where(absent, 0.0, values)
            own = filled.sum(axis=0) / present
            away = np.where(absent, 0.0, values - own)
            spread = np.sqrt((away**2).sum(axis=0) / present)
            parts.append(away / np.where(spread > 0, spread, 1.0))
        if data.misses_values:
            parts.append(absent.astype(np.float64))
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    return [one(record) for record in data.training], [one(record) for record in data.test]
