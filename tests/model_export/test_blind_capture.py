"""Modules that take the steps alone are traced with dynamic rows and width; those of the gallery hold the rest.

Their graphs answer as the modules do, in batches of one length and alone, at widths that were not traced.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from lengthwise.padding import pad
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import ExportError, UncheckableError
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import targets
from tests.gallery.torch_models import network
from tests.support.integer_graphs import opened

FEATURES, CHANNELS, CLASSES = 4, 6, 3
Inner = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """Something between a convolution over the width, or a linear layer over the steps, and a last linear layer."""

    def __init__(self, inner: nn.Module | Inner, *, over_steps: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, CHANNELS) if over_steps else nn.Conv1d(FEATURES, CHANNELS, 3, padding=1)
        self.inner, self.axis = inner, 1 if over_steps else -1
        self.head = nn.LazyLinear(CLASSES)
        self(torch.randn((2, 9, FEATURES) if over_steps else (2, FEATURES, 64)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.first(x))
        return self.head(y if y.dim() == 2 else y.mean(self.axis))


class Packed(nn.Module):
    """Packs sequences that all have the length of the batch, as code does that was written for lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(CHANNELS, 5, batch_first=True)

    def forward(self, y: Tensor) -> Tensor:
        lengths = torch.full((y.size(0),), y.size(1))
        return rnn.pad_packed_sequence(self.layer(rnn.pack_padded_sequence(y, lengths, True))[0], True)[0]


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in many TCNs
        return nn.utils.weight_norm(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=2))


def with_running_statistics(norm: nn.InstanceNorm1d) -> nn.Module:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


OVER_CHANNELS: dict[str, Callable[[], nn.Module | Inner]] = {
    "MaxPool1d, strided, dilated, ceil_mode": lambda: nn.MaxPool1d(3, 2, dilation=2, ceil_mode=True),
    "AvgPool1d without its padding": lambda: nn.AvgPool1d(3, 2, 1, count_include_pad=False),
    "adaptive pools of size 1": lambda: (
        lambda y: torch.cat(
            [functional.adaptive_avg_pool1d(y, 1), functional.adaptive_max_pool1d(y, 1)], dim=1
        ).flatten(1)
    ),
    "AdaptiveAvgPool1d of size 5": lambda: nn.Sequential(nn.AdaptiveAvgPool1d(5), nn.Flatten()),
    "AdaptiveMaxPool1d of size 50": lambda: nn.Sequential(nn.AdaptiveMaxPool1d(50), nn.Flatten()),
    "padding in a circle": lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2, padding_mode="circular"),
    "padding='same', even and dilated": lambda: nn.Conv1d(CHANNELS, 4, 4, padding="same", dilation=3),
    "weight_norm of old": old_weight_norm,
    "a running mean": lambda: lambda y: y.cumsum(-1) / torch.arange(1, y.shape[-1] + 1),
    "shares of the width": lambda: lambda y: y + torch.linspace(-1, 1, y.shape[-1]) * y.abs(),
    "a level of a U-Net": lambda: (
        lambda y: torch.cat([y, functional.interpolate(functional.max_pool1d(y, 2), size=y.shape[-1])], dim=1)
    ),
    "half of the steps, by int": lambda: lambda y: y[..., : int(y.shape[-1] * 0.5)] / math.sqrt(y.shape[-1]),
    "logarithms of the width": lambda: (
        lambda y: y * math.log(y.shape[-1] + 1) / float(y.shape[-1]) + math.log(y.shape[-1], 2) / math.log10(9)
    ),
    "bounds of two types": lambda: lambda y: y.clamp(-2, 1.99) + torch.clip(y, max=1),
    "InstanceNorm1d with running statistics": lambda: with_running_statistics(
        nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True)
    ),
    "the largest quarter": lambda: lambda y: y.topk(max(1, int(0.25 * y.size(-1))), dim=-1).values.mean(-1),
}


OVER_STEPS: dict[str, Callable[[], nn.Module | Inner]] = {
    "attention without heads": lambda: lambda y: functional.scaled_dot_product_attention(y, y, y),
    "a packed GRU": Packed,
    "LayerNorm and RMSNorm": lambda: nn.Sequential(nn.LayerNorm(CHANNELS), nn.RMSNorm(CHANNELS)),
    "a pool of an image over the width": lambda: (
        lambda y: torch.cat(
            [functional.avg_pool2d(y, (y.shape[1], 1)), functional.max_pool2d(y, (y.shape[1], 2)).repeat(1, 1, 2)],
            dim=1,
        ).flatten(1)
    ),
    "adaptive pools of images": lambda: (
        lambda y: torch.cat(
            [
                functional.adaptive_avg_pool2d(y.unsqueeze(1).mT, 1).flatten(1),
                functional.adaptive_avg_pool2d(y.unsqueeze(1), (1, None)).flatten(1),
                functional.adaptive_max_pool2d(y.unsqueeze(1), (1, 1)).flatten(1),
                nn.AdaptiveAvgPool1d(1)(y.mT).flatten(1),
            ],
            dim=1,
        )
    ),
    "a trend taken off": lambda: (
        lambda y: y - functional.avg_pool1d(functional.pad(y.mT, (2, 2), mode="replicate"), 5, 1).mT
    ),
}


def require_equal(module: nn.Module, options: TargetOptions, sizes: Iterable[tuple[int, int]]) -> None:
    """The graph answers as the module does at each number of rows and width."""
    target = targets.read(module, options, blind=True)
    graph = target.build("model", 18).SerializeToString()
    session = opened(graph)
    for rows, width in sizes:
        sampler = Sampler(target.steps, seed=width)
        batch = pad([sampler.sequence(width) for _ in range(rows)], width=width)
        expected = target.subject.answer(batch).logits
        (logits,) = session.run(["logits"], {"values": batch.steps})
        assert logits.shape == expected.shape
        assert (np.abs(logits - expected) <= 1e-5 * np.maximum(1.0, np.abs(expected))).all(), width


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.sampled(24)
@pytest.mark.parametrize("name", [*OVER_CHANNELS, *OVER_STEPS])
def test_the_graph_answers_as_the_module_does_at_every_width(name: str) -> None:
    torch.manual_seed(0)
    over_channels = name in OVER_CHANNELS
    module = Around((OVER_CHANNELS | OVER_STEPS)[name](), over_steps=not over_channels)
    with torch.no_grad():
        for weight in module.parameters():  # so that no bias is 0
            weight.add_(torch.randn_like(weight) * 0.1)
    options = TargetOptions(channels_first=over_channels, features=FEATURES)
    require_equal(module, options, ((3, 24), (1, 41), (5, 13), (2, 48), (1, 7)))


SHARES: dict[str, Inner] = {
    "int": lambda y: y[..., : 1 + int(0.29 * y.shape[-1])],
    "int of a root": lambda y: y[..., : int(y.shape[-1] ** 0.5)],
    "floor and ceil": lambda y: y[..., math.floor(y.shape[-1] * 0.57) // 2 : math.ceil(1.1 * y.shape[-1]) - 1],
    "round": lambda y: y[..., : 1 + round(y.shape[-1] * 0.3)] + y[..., :1] * round(y.shape[-1] / 2),
    "NumPy's round": lambda y: y[..., : 1 + int(np.round(y.shape[-1] * 0.3))],
    "NumPy's functions": lambda y: y * np.log(y.shape[-1]) / np.sqrt(y.size(-1) + 0.5) + np.exp(-y.shape[-1] / 100),
}
"""Numbers that Python computes from the width in float64, and that differ in float32 for some of the widths."""


@pytest.mark.long
def test_sizes_are_computed_as_python_computes_them() -> None:
    torch.manual_seed(0)
    module = Around(lambda y: torch.cat([inner(y).mean(-1) for inner in SHARES.values()], dim=1))
    widths = (*range(2, 40), 95, 100, 175, 195, 200)
    require_equal(module, TargetOptions(channels_first=True, features=FEATURES), ((1, width) for width in widths))


@network(0, lambda: {"conv": nn.Conv1d(FEATURES, 5, 3, padding=1), "head": nn.Linear(5 * 30, CLASSES)})
def flat(self, x: Tensor) -> Tensor:
    return self.head(self.conv(x).flatten(1))


@pytest.mark.long
def test_a_layer_of_a_fixed_width_is_told_with_its_line() -> None:
    with pytest.raises(UncheckableError, match=r"tests/model_export/test_blind_capture.py:\d+: "):
        targets.read(flat(), TargetOptions(channels_first=True), blind=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("middle", "said"),
    [
        (lambda y: torch.chunk(y, 2, dim=-1)[1], r"trace: .*chunk\(y, 2, dim=-1\)"),
        (lambda y: torch.tensor_split(y, 2, dim=-1)[1], r"trace: .*split\(y, 2, dim=-1\)"),
        (lambda y: y.cummax(-1).values, r"translate: .*cummax"),
    ],
)
def test_what_no_graph_can_do_is_told_with_its_line(middle: Callable[[Tensor], Tensor], said: str) -> None:
    target = targets.read(Around(middle), TargetOptions(channels_first=True), blind=True)
    with pytest.raises(ExportError, match=said):
        target.build("model", 18)
