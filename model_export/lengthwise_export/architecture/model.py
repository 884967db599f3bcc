"""The built-in architecture, in the order in which a batch flows through it.

```
values or tokens -> standardize or embed -> convolutions -> recurrent layers or MLP -> self-attention -> pooling -> head
```
Everything between is a masked layer of `architecture.layers`. What comes out has no trace of padding: not of its values
(the first layer already writes zeros there), not of its amount.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional

from lengthwise_export.architecture import layers
from lengthwise_export.architecture.spec import ConvSpec, InputSpec, ModelSpec, Spec
from lengthwise_export.masks import step_mask


class ClassifierOutput(NamedTuple):
    """What the model answers for a batch.

    Attributes:
        logits: `[rows, classes]`; of a per-step model `[rows, width, classes]`, zeros at padding.
        attention: `[rows, width]`, the weights of attention pooling; None without it.
    """

    logits: Tensor
    attention: Tensor | None = None


class SequenceClassifier(nn.Module):
    """A classifier of sequences of different lengths.

    Args:
        spec: What to build.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        model = spec.model
        self.first = first_layer(spec.input, model)
        features = self.first.out_features
        self.convolutions = nn.ModuleList()
        for conv in model.conv:
            self.convolutions.append(ConvBlock(features, conv, dropout=model.dropout))
            features = conv.channels
        self.body = body(features, model)
        features = model.body_features
        heads = model.self_attention_heads
        self.self_attention = layers.MaskedSelfAttention(features, heads, dropout=model.dropout) if heads else None
        self.pooling = None if spec.output.task == "per-step" else Pooling(model)
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Linear(features, len(spec.output.labels))

    def forward(self, steps: Tensor, lengths: Tensor) -> ClassifierOutput:
        """Classifies a padded batch.

        Args:
            steps: `[rows, width, features]` float32, NaN where a value is missing; or `[rows, width]` token ids.
            lengths: `[rows]`, each 1 to width.
        """
        mask = step_mask(lengths, steps.shape[1])  # (rows, width)
        hidden = self.first(steps, mask)  # (rows, width, features)
        for convolution in self.convolutions:
            hidden = convolution(hidden, mask)
        hidden = self.body(hidden, lengths)
        if self.self_attention is not None:
            hidden = self.self_attention(hidden, mask)
        if self.pooling is None:
            return ClassifierOutput(layers.masked(self.head(self.dropout(hidden)), mask))
        pooled, attention = self.pooling(hidden, lengths, mask)  # (rows, features)
        return ClassifierOutput(self.head(self.dropout(pooled)), attention)


def first_layer(spec: InputSpec, model: ModelSpec) -> layers.Standardize | layers.TokenEmbedding:
    """What makes features of a step: its values standardised, or its token's vector."""
    if spec.vocabulary is not None:
        return layers.TokenEmbedding(spec.vocabulary, model.hidden, spec.padding_id)
    # A spec has one of the two: see InputSpec
    return layers.Standardize(cast("int", spec.features), spec.missing)


def body(features: int, spec: ModelSpec) -> layers.MaskedRecurrent | layers.StepwiseLayers:
    """The recurrent layers, or the per-step MLP in their place."""
    if spec.rnn == "none":
        return layers.StepwiseLayers(features, spec.hidden, layers=spec.layers, dropout=spec.dropout)
    return layers.MaskedRecurrent(
        spec.rnn,
        features,
        spec.hidden,
        layers=spec.layers,
        bidirectional=spec.bidirectional,
        dropout=spec.dropout,
    )


class ConvBlock(nn.Module):
    """Convolution, norm, ReLU, dropout."""

    def __init__(self, features: int, spec: ConvSpec, *, dropout: float) -> None:
        super().__init__()
        self.convolution = layers.MaskedConv(features, spec.channels, spec.kernel, spec.dilation)
        norms = {"batch": layers.MaskedBatchNorm, "layer": layers.MaskedLayerNorm}
        self.norm = norms[spec.norm](spec.channels) if spec.norm != "none" else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """`[rows, width, channels]`, zeros at padding: ReLU and dropout keep a zero."""
        steps = self.convolution(steps, mask)
        if self.norm is not None:
            steps = self.norm(steps, mask)
        answer: Tensor = self.dropout(functional.relu(steps))
        return answer


class Pooling(nn.Module):
    """From steps to one vector, in one of the four ways."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.kind = spec.pooling
        self.two_directions = spec.bidirectional and spec.rnn != "none"
        self.attention = layers.AttentionPooling(spec.body_features) if spec.pooling == "attention" else None

    def forward(self, steps: Tensor, lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[rows, features]`, and the attention weights `[rows, width]` where there are any."""
        if self.attention is not None:
            pooled, weights = self.attention(steps, mask)
            return pooled, weights
        if self.kind == "mean":
            return layers.mean_pooling(steps, mask), None
        if self.kind == "max":
            return layers.max_pooling(steps, mask), None
        return layers.last_pooling(steps, lengths, bidirectional=self.two_directions), None
