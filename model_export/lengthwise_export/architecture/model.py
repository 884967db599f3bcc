"""The built-in architecture: a classifier made of masked layers.

```
values or tokens -> normalise or embed -> convolutions -> recurrent layers or MLP -> self-attention -> pooling -> head
        |                                                                                                          ^
        └─────────────────> features of the sequence: length, level, scale; its static values ─────────────────────┘
```
All layers are masked layers of `architecture.layers`, so the answers depend neither on the values in the padding nor on
its amount. With `kernel = [9, 19, 39]`, `pool = 3` and `residual = 3` in every third block, the convolutions are
InceptionTime (https://arxiv.org/abs/1909.04939); with one kernel in a block, a residual network
(https://arxiv.org/abs/1611.06455).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lengthwise_export.architecture import layers
from lengthwise_export.architecture.model_spec import ConvSpec, ModelSpec
from lengthwise_export.architecture.normalization import Normalize, SequenceFeatures
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.static_values import StaticValues
from lengthwise_export.masks import step_mask

NORMS = {"batch": layers.MaskedBatchNorm, "layer": layers.MaskedLayerNorm}


class ClassifierOutput(NamedTuple):
    """The output of the model for a batch."""

    logits: Tensor  # `[rows, classes]`; for a per-step model `[rows, width, classes]`, zeros at padding
    attention: Tensor | None = None  # `[rows, width]`, the weights of attention pooling
    clipped: Tensor | None = None  # `[rows]`, how many values are beyond the grid of the training split

    def present(self) -> dict[str, Tensor]:
        """Outputs by name: logits `[rows, classes]` or `[rows, width, classes]`, maybe attention `[rows, width]`."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class SequenceClassifier(nn.Module):
    """A classifier of sequences of different lengths."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        spec = spec.concrete()
        step, model = spec.input, spec.model
        # The first layer: values are normalised, tokens are embedded
        self.first: Normalize | layers.TokenEmbedding = (
            Normalize(step.features or 0, step.missing, step.normalize)
            if step.vocabulary is None
            else layers.TokenEmbedding(step.vocabulary, model.hidden, step.padding_id)
        )
        # Convolutions. Block n takes `features[n]` features and gives `features[n + 1]`. A residual connection of 1
        # adds the input of its own block, one of 2 that of the block before
        features = [self.first.out_features, *(conv.channels for conv in model.conv)]
        self.input_dropout = nn.Dropout(model.input_dropout)
        self.residuals = [conv.residual for conv in model.conv]
        self.convolutions = nn.ModuleList(
            ConvBlock(
                features[index],
                conv,
                dropout=model.dropout,
                earlier=features[index - (conv.residual - 1)] if conv.residual else 0,
            )
            for index, conv in enumerate(model.conv)
        )
        # Recurrent layers or MLP, then self-attention
        self.body = _body(features[-1], model)
        width, heads = model.body_features, model.self_attention_heads
        self.self_attention = layers.MaskedSelfAttention(width, heads, dropout=model.dropout) if heads else None
        blocks, hidden = model.self_attention_layers if heads else 0, model.feed_forward
        # These blocks are made before `feed_forward`, and registered after it. Keep both orders: by the first, a seed
        # draws the same weights as in earlier versions; by the second, their states of the optimiser can be read.
        further_attention = [layers.MaskedSelfAttention(width, heads, dropout=model.dropout) for _ in range(blocks - 1)]
        self.feed_forward = nn.ModuleList(
            layers.FeedForward(width, hidden, dropout=model.dropout) for _ in range(blocks if hidden else 0)
        )
        self.more_attention = nn.ModuleList(further_attention)
        # Pooling and head; a per-step model has no pooling
        self.pooling = Pooling(model) if spec.output.task != "per-step" else None
        self.sequence_features: SequenceFeatures | None = None
        if self.pooling is not None:
            width = self.pooling.out_features
            if model.sequence_features:
                self.sequence_features = SequenceFeatures(model.sequence_features, step.features or 0)
                width += self.sequence_features.out_features
        self.static_values = StaticValues(step.static_input) if step.static_input else None
        beside = self.static_values.out_features if self.static_values else 0
        self.dropout, self.head = nn.Dropout(model.dropout), nn.Linear(width + beside, len(spec.output.labels))

    def fit(self, sequences: list[Tensor], static: list[Tensor] | None = None) -> None:
        """Computes the statistics of the training split that the graph holds.

        Args:
            sequences: Each `[length, features]`.
            static: The static values of each, `[count]`; None if the model takes none.
        """
        if self.static_values is not None and static is not None:
            self.static_values.fit(torch.stack(static))
        if isinstance(self.first, Normalize):
            self.first.fit(sequences)
            sequences = self.first.each_rescaled(sequences)
        if self.sequence_features is not None:
            self.sequence_features.fit(sequences)

    def forward(self, steps: Tensor, lengths: Tensor, static: Tensor | None = None) -> ClassifierOutput:
        """Classifies a batch.

        Args:
            steps: Values `[rows, width, features]`, NaN if missing, or ids `[rows, width]`.
            lengths: `[rows]`.
            static: The static values `[rows, count]`, NaN if missing; None if the model takes none.
        """
        mask = step_mask(lengths, steps.shape[1])  # (rows, width)
        hidden = self.first(steps, mask)  # (rows, width, features)
        inputs = [self.input_dropout(hidden)]  # the input of each block so far, and last the output of the last block
        for residual, convolution in zip(self.residuals, self.convolutions, strict=True):
            inputs.append(convolution(inputs[-1], mask, inputs[-residual] if residual else None))
        hidden = inputs[-1]
        if self.body is not None:
            hidden = self.body(hidden, lengths)
        attentions = () if self.self_attention is None else (self.self_attention, *self.more_attention)
        for index, attend in enumerate(attentions):
            hidden = attend(hidden, mask)
            if len(self.feed_forward):
                hidden = self.feed_forward[index](hidden, mask)
        beside = None if self.static_values is None or static is None else self.static_values(static)
        if self.pooling is None:
            if beside is not None:
                hidden = torch.cat([hidden, beside.unsqueeze(1).expand(-1, hidden.shape[1], -1)], dim=2)
            return ClassifierOutput(layers.masked(self.head(self.dropout(hidden)), mask))
        pooled, attention = self.pooling(hidden, lengths, mask)  # (rows, features)
        pooled = self.dropout(pooled)
        if self.sequence_features is not None:
            values = self.first.rescaled(steps, mask) if isinstance(self.first, Normalize) else steps
            pooled = torch.cat([pooled, self.sequence_features(values, lengths)], dim=1)
        if beside is not None:
            pooled = torch.cat([pooled, beside], dim=1)
        return ClassifierOutput(self.head(pooled), attention)


def _body(features: int, spec: ModelSpec) -> layers.MaskedRecurrent | layers.StepwiseLayers | None:
    """Makes the recurrent layers, or the per-step MLP; None with `layers = 0`."""
    if spec.layers == 0:
        return None
    size: dict[str, Any] = {"layers": spec.layers, "dropout": spec.dropout}
    if spec.rnn == "none":
        return layers.StepwiseLayers(features, spec.hidden, **size)
    return layers.MaskedRecurrent(spec.rnn, features, spec.hidden, bidirectional=spec.bidirectional, **size)


class Pooling(nn.Module):
    """Reduces the steps to one vector: attention, mean, max, mean and max, or last."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.kind = spec.pooling
        self.two_directions = spec.bidirectional and spec.rnn != "none"
        self.out_features = spec.body_features * (2 if spec.pooling == "mean-max" else 1)
        self.attention = layers.AttentionPooling(spec.body_features) if spec.pooling == "attention" else None

    def forward(self, steps: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[rows, features]`, and the weights `[rows, width]` of attention pooling (otherwise None)."""
        if self.attention is not None:
            return cast("tuple[Tensor, Tensor]", self.attention(steps, mask))
        if self.kind == "last":
            return layers.last_pooling(steps, lengths, bidirectional=self.two_directions), None
        kinds = {"mean": layers.mean_pooling, "max": layers.max_pooling, "mean-max": layers.mean_max_pooling}
        return kinds[self.kind](steps, mask), None


class ConvBlock(nn.Module):
    """A convolution, norm, ReLU and dropout, maybe with a residual connection that is added before the ReLU.

    `earlier` is the number of features of the earlier block's input that the connection adds; 0 without one.
    """

    def __init__(self, features: int, spec: ConvSpec, *, dropout: float, earlier: int = 0) -> None:
        super().__init__()
        self.convolution = (
            ParallelBranches(features, spec)
            if spec.branches > 1 or spec.bottleneck
            else layers.MaskedConv(features, spec.channels, spec.kernels[0], spec.dilation)
        )
        self.norm = NORMS[spec.norm](spec.channels) if spec.norm != "none" else None
        self.shortcut = Shortcut(earlier, spec) if earlier else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, mask: Tensor, earlier: Tensor | None = None) -> Tensor:
        """`[rows, width, channels]`, zeros at padding (ReLU and dropout keep zeros).

        `earlier`: the input of an earlier block, `[rows, width, features]`, for the residual connection.
        """
        steps = self.convolution(steps, mask)
        if self.norm is not None:
            steps = self.norm(steps, mask)
        if self.shortcut is not None and earlier is not None:
            steps = steps + self.shortcut(earlier, mask)
        return cast("Tensor", self.dropout(functional.relu(steps)))


class Shortcut(nn.Module):
    """The path of a residual connection: a linear layer where the number of features differs, and a norm."""

    def __init__(self, features: int, spec: ConvSpec) -> None:
        super().__init__()
        self.project = nn.Linear(features, spec.channels, bias=False) if features != spec.channels else None
        self.norm = NORMS[spec.norm](spec.channels) if spec.norm != "none" else None

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding."""
        if self.project is not None:
            steps = self.project(steps)
        return steps if self.norm is None else self.norm(steps, mask)


class ParallelBranches(nn.Module):
    """Convolutions of several kernels, concatenated, as in InceptionTime.

    They read fewer features, made by a linear layer (`bottleneck`), if the spec says so. With `pool`, one more branch
    is a sliding maximum and a linear layer.
    """

    def __init__(self, features: int, spec: ConvSpec) -> None:
        super().__init__()
        narrow = bool(spec.bottleneck) and spec.bottleneck < features
        self.bottleneck = nn.Linear(features, spec.bottleneck, bias=False) if narrow else None
        width = spec.channels // spec.branches
        read = spec.bottleneck if narrow else features
        self.kernels = nn.ModuleList(layers.MaskedConv(read, width, kernel, spec.dilation) for kernel in spec.kernels)
        self.pool = spec.pool
        self.of_pool = nn.Linear(features, width) if spec.pool else None

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding."""
        narrow = steps if self.bottleneck is None else self.bottleneck(steps)
        branches = [convolution(narrow, mask) for convolution in self.kernels]
        if self.of_pool is not None:
            branches.append(layers.masked(self.of_pool(sliding_maximum(steps, mask, self.pool)), mask))
        return torch.cat(branches, dim=2)


def sliding_maximum(steps: Tensor, mask: Tensor, size: int) -> Tensor:
    """`[rows, width, features]`: at each valid step, the maximum over the valid steps among `size` steps around it."""
    width = steps.shape[1]
    steps_before = (size - 1) // 2
    padded = functional.pad(
        torch.where(mask.unsqueeze(2), steps, layers.LOWEST),
        (0, 0, steps_before, size - 1 - steps_before),
        value=layers.LOWEST,
    )
    largest = padded[:, :width]
    for offset in range(1, size):
        largest = torch.maximum(largest, padded[:, offset:][:, :width])
    return layers.masked(largest, mask)
