"""Small models, each wrong and right, for the questions of docs/masking.md.

lengthwise check examples/masking.py:attention_after_lstm     # a leak
lengthwise check examples/masking.py:masked_attention_after_lstm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FEATURES, HIDDEN, CLASSES = 4, 8, 3


def valid_steps(lengths: Tensor, width: int) -> Tensor:
    """`[rows, width]`, true at the valid steps: what replaces a Masking layer where the lengths are known."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


class LstmAttention(nn.Module):
    """A packed LSTM, then weights from a softmax over its steps."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked = masked
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.score = nn.Linear(HIDDEN, 1)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]`."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.size(1))
        scores = self.score(h).squeeze(2)  # [rows, width]; at padding h is 0, and the score is the bias
        if self.masked:
            scores = scores.masked_fill(~valid_steps(lengths, x.size(1)), torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1)
        return self.head((weights.unsqueeze(1) @ h).squeeze(1))


class TwoConvolutions(nn.Module):
    """Two convolutions with a bias, a norm and a ReLU between them, and a mean."""

    def __init__(self, *, masked_between: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked_between = masked_between
        self.first = nn.Conv1d(FEATURES, HIDDEN, 3, padding=1)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.second = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]`."""
        valid = valid_steps(lengths, x.size(1)).unsqueeze(1)  # [rows, 1, width]
        h = torch.where(valid, x.mT, 0.0)
        h = torch.relu(self.norm(self.first(h)))  # padding is no longer 0: the bias put a value there
        if self.masked_between:
            h = torch.where(valid, h, 0.0)
        h = torch.where(valid, self.second(h), 0.0)
        return self.head(h.sum(2) / lengths[:, None])


class Mean(nn.Module):
    """The mean over the steps; the lengths are guessed from zeros, or taken as given."""

    def __init__(self, *, guessed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.guessed = guessed
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]`."""
        valid = (x != 0).any(2) if self.guessed else valid_steps(lengths, x.size(1))
        total = torch.where(valid.unsqueeze(2), x, 0.0).sum(1)
        return self.head(total / valid.sum(1, keepdim=True).clamp(min=1))


class Tokens(nn.Module):
    """Token vectors, averaged; padding is told by its id, or by the lengths."""

    def __init__(self, *, by_id: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_id = by_id
        self.table = nn.Embedding(20, HIDDEN, padding_idx=0)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, classes]` of `tokens [rows, width]`."""
        h = self.table(tokens)
        if self.by_id:  # the vector of id 0 is 0, but it is averaged in
            return self.head(h.mean(1))
        valid = valid_steps(lengths, tokens.size(1))
        return self.head(torch.where(valid.unsqueeze(2), h, 0.0).sum(1) / lengths[:, None])


def attention_after_lstm() -> nn.Module:
    """Leaks: padded steps take part in the softmax."""
    return LstmAttention(masked=False)


def masked_attention_after_lstm() -> nn.Module:
    """Sound."""
    return LstmAttention(masked=True)


def convolutions_without_a_mask_between() -> nn.Module:
    """Leaks: the second convolution reads what the first one's bias put at padding."""
    return TwoConvolutions(masked_between=False)


def convolutions() -> nn.Module:
    """Sound."""
    return TwoConvolutions(masked_between=True)


def lengths_from_zeros() -> nn.Module:
    """Leaks: what is not 0 counts as a step, wherever it stands."""
    return Mean(guessed=True)


def lengths_given() -> nn.Module:
    """Sound."""
    return Mean(guessed=False)


def tokens_by_padding_id() -> nn.Module:
    """Leaks: a mean over the width."""
    return Tokens(by_id=True)


def tokens_by_length() -> nn.Module:
    """Sound."""
    return Tokens(by_id=False)
