"""Modules of other people's libraries, each as a classifier of sequences: what `benchmarks.third_party` tries.

Weights are random. A library's own layer stands between a dense layer and a mean over the steps, as its users put it
into a classifier. Where the module takes lengths or a mask, it gets them, and nothing is mended.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor, nn

FEATURES: Final = 6
CLASSES: Final = 3
INSIDE: Final = 16
"""Features between the dense layer in front of a library's module and the one behind it."""

Pick = Callable[[Any], Tensor]
"""Takes the states `[rows, steps, features]` out of what a module returns."""


PICKS: Final[dict[str, Pick]] = {
    "itself": lambda answer: answer,
    "first": lambda answer: answer[0],
    "states": lambda answer: answer.last_hidden_state,
    "source": lambda answer: answer[:, 0],
    "one state": lambda answer: answer[..., None],
}


class Classifier(nn.Module):
    """A dense layer, a library's module over the steps, the mean over the steps, a dense layer."""

    def __init__(self, part: nn.Module, pick: Pick, inside: int, outside: int, *, channels_first: bool) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(FEATURES, inside), part, nn.Linear(outside, CLASSES)
        self.pick, self.channels_first = pick, channels_first

    def forward(self, x: Tensor) -> Tensor:
        """Logits for `[rows, steps, features]`."""
        if self.channels_first:
            return self.last(self.pick(self.part(self.first(x).mT)).mean(2))
        return self.last(self.pick(self.part(self.first(x))).mean(1))


class Embedded(Classifier):
    """The same around an encoder of `transformers`, which takes embeddings by name."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits for `[rows, steps, features]`."""
        return self.last(self.pick(self.part(inputs_embeds=self.first(x))).mean(1))


class EmbeddedMasked(Classifier):
    """The same with a mask, for the encoder and for the mean."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits for `[rows, steps, features]` and a mask `[rows, steps]`, true at valid steps."""
        states = self.pick(self.part(inputs_embeds=self.first(x), attention_mask=mask.long()))
        valid = mask.unsqueeze(-1)
        return self.last(states.masked_fill(~valid, 0).sum(1) / valid.sum(1))


class Masked(Classifier):
    """The same around a module that takes `mask=`."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits for `[rows, steps, features]` and a mask `[rows, steps]`, true at valid steps."""
        states = self.pick(self.part(self.first(x), mask=mask))
        valid = mask.unsqueeze(-1)
        return self.last(states.masked_fill(~valid, 0).sum(1) / valid.sum(1))


class WithLengths(Classifier):
    """The same around a module that takes lengths second."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits for `[rows, steps, features]` and lengths `[rows]`."""
        states = self.pick(self.part(self.first(x), lengths))
        valid = (lengths.new_ones(x.shape[1]).cumsum(0) <= lengths[:, None]).unsqueeze(-1)
        return self.last(states.masked_fill(~valid, 0).sum(1) / valid.sum(1))


AROUND: Final = {kind.__name__: kind for kind in (Classifier, Embedded, EmbeddedMasked, Masked, WithLengths)}


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """A library's module in a classifier."""

    library: str  # the distribution that has it
    path: str  # `package.module:Class`
    arguments: dict[str, Any]  # what it is made with
    note: str = ""  # what sets it apart from others of its class
    around: type[Classifier] = Classifier  # the classifier around it
    pick: Pick = PICKS["itself"]  # takes its states out of its answer
    inside: int = INSIDE  # features of its input
    outside: int | None = None  # features of its states; `inside` without it
    channels_first: bool = False  # whether it takes `[rows, features, steps]`
    # whether the arguments belong to a configuration object `package.module:Class`, the only argument
    config: str | None = None
    # a part of the true reason for which it is refused, as a person judged it; None where it is taken
    refused: str | None = None

    @property
    def name(self) -> str:
        """Such as `TCN, causal`."""
        return self.path.rpartition(":")[2] + (f", {self.note}" if self.note else "")

    @property
    def takes(self) -> Literal["steps", "lengths", "mask"]:
        """What it takes beside the steps; one that takes the steps alone is to be mended."""
        if issubclass(self.around, WithLengths):
            return "lengths"
        return "mask" if issubclass(self.around, (Masked, EmbeddedMasked)) else "steps"

    @property
    def is_installed(self) -> bool:
        """Whether its library is there."""
        try:
            metadata.version(self.library)
        except metadata.PackageNotFoundError:
            return False
        return True

    def make(self) -> nn.Module:
        """The classifier in evaluation mode, with random weights."""
        made = _named(self.path)(
            **(self.arguments if self.config is None else {"config": _named(self.config)(**self.arguments)})
        )
        outside = self.outside or self.inside
        return self.around(made, self.pick, self.inside, outside, channels_first=self.channels_first).eval()


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def x_encoder(**layers: Any) -> nn.Module:
    """An encoder of x-transformers for sequences of values."""
    library = importlib.import_module("x_transformers")
    encoder = library.Encoder(**layers)
    return library.ContinuousTransformerWrapper(dim_in=INSIDE, dim_out=INSIDE, max_seq_len=256, attn_layers=encoder)  # type: ignore[no-any-return]


def perceiver(**said: Any) -> nn.Module:
    """A Perceiver over one axis, whose answer is taken for one state."""
    library = importlib.import_module("perceiver_pytorch")
    made = library.Perceiver(
        num_freq_bands=2,
        max_freq=4.0,
        input_axis=1,
        num_latents=4,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=8,
        latent_dim_head=8,
        **said,
    )
    return nn.Sequential(made, nn.Unflatten(1, (1, -1)))


def _read(entry: dict[str, Any]) -> ThirdParty:
    named = {"around": AROUND, "pick": PICKS}
    return ThirdParty(**{key: named[key][value] if key in named else value for key, value in entry.items()})


THIRD_PARTY: Final = tuple(
    map(_read, tomllib.loads(Path(__file__).with_name("third_party.toml").read_text(encoding="utf-8"))["modules"])
)
