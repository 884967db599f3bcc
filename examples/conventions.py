"""Models in the conventions of libraries, as docs/targets.md describes them.

The classes have the arguments, outputs and masks that models of these libraries have, and need no library but torch.

lengthwise check examples/conventions.py:hugging_face
lengthwise check examples/conventions.py:padding_mask --second padding-mask
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FEATURES, HIDDEN, CLASSES, VOCABULARY = 4, 8, 3, 50


class ModelOutput(OrderedDict[str, Any]):
    """Outputs by name, also as attributes, as Hugging Face's models return them."""

    def __getattr__(self, name: str) -> Any:
        """The output of a name."""
        if name in self:
            return self[name]
        raise AttributeError(name)


class Encoder(nn.Module):
    """A classifier with Hugging Face's arguments, all of them optional and given by keyword."""

    def __init__(self, *, left_padded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left_padded = left_padded
        self.embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(512, HIDDEN)
        self.layer = nn.TransformerEncoderLayer(HIDDEN, 2, 16, batch_first=True)
        self.classifier = nn.Linear(HIDDEN, CLASSES)

    def forward(
        self,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> ModelOutput:
        """`logits [rows, classes]` of `input_ids [rows, width]`."""
        if inputs_embeds is None:
            inputs_embeds = self.embeddings(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2])
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(0)
        hidden = inputs_embeds + self.positions(position_ids)
        hidden = self.layer(hidden, src_key_padding_mask=~attention_mask.bool())
        # A decoder is padded on the left, so that its last valid step is the last of the row.
        pooled = hidden[:, -1] if self.left_padded else hidden[:, 0]
        return ModelOutput(logits=self.classifier(pooled), hidden_states=None)


def hugging_face() -> nn.Module:
    """`input_ids`, `attention_mask` and an output with `logits`."""
    return Encoder(left_padded=False)


def left_padded() -> nn.Module:
    """The same, but right for left padding only: `check` says so."""
    return Encoder(left_padded=True)


class PaddingMask(nn.Module):
    """An encoder with torch's `src_key_padding_mask`, which is true at padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(FEATURES, HIDDEN)
        self.encoder = nn.TransformerEncoderLayer(HIDDEN, 2, 16, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        """`[rows, classes]` of `src [rows, width, features]`."""
        hidden = self.encoder(self.project(src), src_key_padding_mask=src_key_padding_mask)
        kept = hidden.masked_fill(src_key_padding_mask.unsqueeze(2), 0.0)
        return self.head(kept.sum(1) / (~src_key_padding_mask).sum(1, keepdim=True))


def padding_mask() -> nn.Module:
    """Checked with `--second padding-mask`."""
    return PaddingMask()


class KeywordOnly(nn.Module):
    """All arguments by keyword, the lengths among them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, *, series: Tensor, seq_lengths: Tensor, return_features: bool = False) -> dict[str, Tensor]:
        """`{"logits": [rows, classes]}` of `series [rows, width, features]`."""
        valid = torch.arange(series.size(1), device=series.device) < seq_lengths[:, None]
        kept = series.masked_fill(~valid.unsqueeze(2), 0.0)
        return {"logits": self.head(kept.sum(1) / seq_lengths[:, None])}


def keyword_only() -> nn.Module:
    """`series` and `seq_lengths` are recognised by their names and order."""
    return KeywordOnly()


class Lit(nn.Module):
    """As a `LightningModule` is built: it holds the model, the loss and the steps of training."""

    def __init__(self, loss: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.model = KeywordOnly()
        self.loss = loss or nn.CrossEntropyLoss(weight=torch.ones(CLASSES))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's own `forward` says only that there is none."""
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        series, lengths, labels = batch
        return self.loss(self.model(series=series, seq_lengths=lengths)["logits"], labels)


def lightning() -> nn.Module:
    """The inner module of a `LightningModule`, which is what to check and to export."""
    return Lit().model


class StepsAlone(nn.Module):
    """A fully convolutional network of `[rows, features, width]`, as tsai and aeon build them: no lengths, no mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(size, HIDDEN, kernel, padding="same"), nn.BatchNorm1d(HIDDEN), nn.ReLU())
                for size, kernel in ((FEATURES, 7), (HIDDEN, 5), (HIDDEN, 3))
            )
        )
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, features, width]`."""
        return self.head(self.blocks(x).mean(2))


def steps_alone() -> nn.Module:
    """It leaks unless it is mended; `--channels-first` gives it its order of axes."""
    return StepsAlone()


class WithStatic(nn.Module):
    """A classifier that gets values of the whole sequence beside its steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.head = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN + 3, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor, static: Tensor) -> Tensor:
        """`[rows, classes]` of `x [rows, width, features]` and `static [rows, 3]`."""
        return self.head(torch.cat([mean_of(self.encode(x), lengths), static], dim=1))


def with_static() -> nn.Module:
    """`static` is recognised by its name, the number of its values by trial."""
    return WithStatic()


class Pair(nn.Module):
    """A classifier of two texts of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.head = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, title: Tensor, title_lengths: Tensor, body: Tensor, body_lengths: Tensor) -> Tensor:
        """`[rows, classes]` of token ids `[rows, width]`, each sequence with a width of its own."""
        texts = (mean_of(self.embeddings(title), title_lengths), mean_of(self.embeddings(body), body_lengths))
        return self.head(torch.cat(texts, dim=1))


def pair() -> nn.Module:
    """The sequences are recognised by the names of their lengths."""
    return Pair()


def mean_of(steps: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the valid steps, `[rows, features]`."""
    valid = torch.arange(steps.size(1), device=steps.device) < lengths[:, None]
    return steps.masked_fill(~valid.unsqueeze(2), 0.0).sum(1) / lengths[:, None]
