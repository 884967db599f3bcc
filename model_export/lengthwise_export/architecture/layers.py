"""Masked layers: layers for padded batches whose outputs at valid steps do not depend on padding.

`steps` is `[rows, width, features]`, `lengths` is `[rows]`, and `mask` is `[rows, width]`, true at valid steps. The
docstring of a `forward`, or of a pooling, begins with the shape of its result. The width comes from the tensor, never
from the longest length: a batch may be wider than all of its sequences. The output of a layer at padding is always
zero, so the next layer can rely on that.

Weighted sums over the steps are matrix products, never a product followed by a sum: in onnxruntime, the order of
summation of the former does not depend on the batch (see `lengthwise.padding` on widths), that of the latter does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from lengthwise_export.masks import step_mask

# A masked score. Minus infinity could make a softmax NaN; this value becomes exactly 0 if any step is valid
LOWEST = torch.finfo(torch.float32).min

ROWS_TOGETHER = 64
NORM_MOMENTUM, NORM_EPSILON = 0.1, 1e-5
MOST_SLICES = 8  # of a larger kernel, steps are looked up: one operator, because an export takes time for each


def masked(steps: Tensor, mask: Tensor) -> Tensor:
    """`steps [rows, width, features]` with zeros where `mask [rows, width]` is false; a product would keep NaN."""
    return torch.where(mask.unsqueeze(2), steps, 0.0)


@torch.no_grad()
def answer_in_batches(
    answer: Callable[..., Tensor],
    sequences: Sequence[Tensor],
    rows: int = ROWS_TOGETHER,
    beside: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Applies a function of batches to sequences, in padded batches of similar lengths, without gradients.

    Args:
        answer: Takes padded steps `[rows, width, ...]` and lengths `[rows]`; with `beside`, also these `[rows, ...]`.
        sequences: Each `[length, features]` or `[length]`.
        rows: Sequences in a batch.
        beside: What stands beside each sequence, of one shape; None for nothing.

    Returns:
        For each sequence, in their order, its row of the answer: `[length, ...]` if the answer has an entry for each
        step, without those of padding.
    """
    answers = [torch.empty(0)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        batch_sequences = [sequences[index] for index in indices]
        lengths = torch.tensor([len(steps) for steps in batch_sequences])
        more = () if beside is None else (torch.stack([beside[index] for index in indices]),)
        answered = answer(pad_sequence(batch_sequences, batch_first=True), lengths, *more)
        for index, row in zip(indices, answered, strict=True):
            answers[index] = row[: len(sequences[index])] if row.ndim == 2 else row  # of two axes, one is of the steps
    return answers


class TokenEmbedding(nn.Module):
    """An embedding of token ids. Padding may hold any number, even outside the vocabulary."""

    def __init__(self, vocabulary: int, features: int, padding_id: int | None = None) -> None:
        super().__init__()
        self.out_features = features
        self.table = nn.Embedding(vocabulary, features, padding_idx=padding_id)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`, the vectors of `tokens [rows, width]`; zeros at padding."""
        return masked(self.table(torch.where(mask, tokens, 0)), mask)


class MaskedBatchNorm(nn.Module):
    """Batch normalisation with statistics over valid steps only (https://arxiv.org/abs/1502.03167)."""

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_variance", torch.ones(features))

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`, zeros at padding. In training, it also updates the running mean and variance."""
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            valid = steps[mask]  # (valid steps, features)
            mean, variance = valid.mean(dim=0), valid.var(dim=0, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, NORM_MOMENTUM)
                # with Bessel's correction, as in torch's BatchNorm1d
                self.running_variance.lerp_(variance * (len(valid) / max(len(valid) - 1, 1)), NORM_MOMENTUM)
        return masked((steps - mean) * torch.rsqrt(variance + NORM_EPSILON) * self.weight + self.bias, mask)


class MaskedLayerNorm(nn.Module):
    """Layer normalisation over the features of each step (https://arxiv.org/abs/1607.06450); padding stays zero."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`, zeros at padding."""
        return masked(self.norm(steps), mask)


class MaskedConv(nn.Module):
    """A convolution over the steps with stride 1 and the same number of steps. Around a sequence there are zeros.

    It is computed as one matrix product over `kernel` neighbouring steps, concatenated: the order of summation of a
    convolution depends on the width, that of a product with constant weights does not. An even kernel reads one more
    step after than before.
    """

    def __init__(self, features: int, channels: int, kernel: int = 3, dilation: int = 1) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation
        self.steps_before = (kernel - 1) * dilation // 2  # that the kernel reads before a step
        self.steps_after = (kernel - 1) * dilation - self.steps_before
        self.project = nn.Linear(kernel * features, channels)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding."""
        width, features = steps.shape[1:]
        around = functional.pad(masked(steps, mask), (0, 0, self.steps_before, self.steps_after))
        if not self.training:
            return masked(self.project(self._taps(around, width)), mask)  # (rows, width, channels)
        # In training, a convolution: the same result, and two to three times as fast with its gradients
        taps = self.project.weight.view(self.project.out_features, self.kernel, features).transpose(1, 2)
        convolved = functional.conv1d(around.transpose(1, 2), taps, self.project.bias, dilation=self.dilation)
        return masked(convolved.transpose(1, 2), mask)

    def _taps(self, around: Tensor, width: int) -> Tensor:
        """`[rows, width, kernel * features]`: for each step, the steps that the kernel reads for it, concatenated.

        `around` is `[rows, width + steps_before + steps_after, features]`, the steps with zeros at both ends.
        """
        if self.kernel <= MOST_SLICES:
            return torch.cat([around[:, tap * self.dilation :][:, :width] for tap in range(self.kernel)], dim=2)
        indices = torch.arange(width, device=around.device).unsqueeze(1)
        indices = indices + torch.arange(self.kernel, device=around.device) * self.dilation  # (width, kernel)
        # one list of indices becomes a Gather, a list of lists the slower GatherND
        taps = around.index_select(1, indices.flatten())  # (rows, width * kernel, features)
        return taps.reshape(around.shape[0], width, self.kernel * around.shape[2])


class MaskedRecurrent(nn.Module):
    """LSTM or GRU layers over packed sequences, so that both directions ignore padding."""

    def __init__(
        self, cell: str, features: int, hidden: int, *, layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        between = dropout if layers > 1 else 0.0
        self.rnn = recurrent(features, hidden, layers, batch_first=True, dropout=between, bidirectional=bidirectional)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, width, hidden]`, or `2 * hidden` if bidirectional; zeros at padding."""
        packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = self.rnn(packed)
        padded, _ = pad_packed_sequence(outputs, batch_first=True, total_length=steps.shape[1])
        return padded


class StepwiseLayers(nn.Module):
    """A multilayer perceptron (MLP), applied to each step separately; with `rnn = "none"`, for recurrent layers."""

    def __init__(self, features: int, hidden: int, *, layers: int, dropout: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index in range(layers):
            blocks += [nn.Linear(hidden if index else features, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """`[rows, width, hidden]`, zeros at padding."""
        return masked(self.blocks(steps), step_mask(lengths, steps.shape[1]))


class MaskedSelfAttention(nn.Module):
    """Multi-head self-attention over the valid steps, with a residual connection and a layer norm after it.

    `softmax(Q K^T / sqrt(d)) V`, https://arxiv.org/abs/1706.03762, section 3.2, padded keys masked before the softmax.
    """

    def __init__(self, features: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)
        self.dropout = nn.Dropout(dropout)
        self.norm = MaskedLayerNorm(features)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`, zeros at padding."""
        rows, width, features = steps.shape
        projected = self.query_key_value(steps).view(rows, width, 3, self.heads, features // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (rows, heads, width, features of a head)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (rows, heads, width, width)
        weights = torch.where(mask[:, None, None, :], scores, LOWEST).softmax(dim=3)
        mixed = (self.dropout(weights) @ value).transpose(1, 2).flatten(2)  # (rows, width, features)
        return cast("Tensor", self.norm(steps + self.dropout(self.project(mixed)), mask))


class FeedForward(nn.Module):
    """Two layers at each step, with a residual connection and a layer norm (https://arxiv.org/abs/1706.03762, 3.3)."""

    def __init__(self, features: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.widen = nn.Linear(features, hidden)
        self.narrow = nn.Linear(hidden, features)
        self.dropout = nn.Dropout(dropout)
        self.norm = MaskedLayerNorm(features)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, features]`, zeros at padding."""
        inside = self.dropout(functional.relu(self.widen(steps)))
        return cast("Tensor", self.norm(steps + self.dropout(self.narrow(inside)), mask))


class AttentionPooling(nn.Module):
    """A weighted mean of the valid steps; the weights are a softmax over scores of `tanh` units.

    `u_t = tanh(W h_t + b)`, `weight = softmax(v . u_t)`: https://aclanthology.org/N16-1174, equations 5 to 7.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.units = nn.Linear(features, features)
        self.score = nn.Linear(features, 1, bias=False)

    def forward(self, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`[rows, features]`, and the weights `[rows, width]`: 0 at padding, summing to 1."""
        scores = self.score(torch.tanh(self.units(steps))).squeeze(2)  # (rows, width)
        weights = torch.where(mask, scores, LOWEST).softmax(dim=1)
        return (weights.unsqueeze(1) @ steps).squeeze(1), weights


def mean_pooling(steps: Tensor, mask: Tensor) -> Tensor:
    """`[rows, features]`: the mean of the valid steps; it divides by the length, not by the width."""
    ones = mask.to(steps.dtype)
    return ((ones / ones.sum(dim=1, keepdim=True)).unsqueeze(1) @ steps).squeeze(1)


def max_pooling(steps: Tensor, mask: Tensor) -> Tensor:
    """`[rows, features]`: the maximum over valid steps. Zeros at padding would be larger than negative values."""
    return torch.where(mask.unsqueeze(2), steps, LOWEST).amax(dim=1)


def mean_max_pooling(steps: Tensor, mask: Tensor) -> Tensor:
    """`[rows, 2 * features]`: the mean and the maximum of the valid steps."""
    return torch.cat([mean_pooling(steps, mask), max_pooling(steps, mask)], dim=1)


def last_pooling(steps: Tensor, lengths: Tensor, *, bidirectional: bool) -> Tensor:
    """`[rows, features]`: the last valid step of each row.

    With `bidirectional`, the second half of the features come from a layer that reads backwards, so that they are taken
    from the first step, where it ends.
    """
    index = (lengths.to(torch.int64) - 1).view(-1, 1, 1).expand(-1, 1, steps.shape[2])
    last = steps.gather(1, index).squeeze(1)
    if not bidirectional:
        return last
    forward = steps.shape[2] // 2
    return torch.cat([last[:, :forward], steps[:, 0, forward:]], dim=1)
