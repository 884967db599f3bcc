"""The table `[model]` of a spec: the kind of model, its layers and pooling; presets are sets of its keys.

| preset | layers |
|---|---|
| `rnn` | a bidirectional LSTM with attention pooling: short sequences |
| `conv` | six convolutional blocks of three kernel sizes each, with residual connections (InceptionTime) |
| `conv-rnn` | two residual convolutions, then a bidirectional GRU |
| `transformer` | a convolution, then two blocks of self-attention; the convolution tells the order of the steps |

`auto` is one of them, chosen by `train` from the data; without data it is `rnn`. A spec may override each key.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lengthwise.wrong_values import no_booleans_for_numbers

Preset = Literal["auto", "rnn", "conv", "conv-rnn", "transformer"]

WIDEST_HEAD = 128
"""Maximum number of features of an attention head. For larger heads, onnxruntime's CPU kernel sums a score in blocks
whose size depends on the width, so the bits of an answer would depend on the batch."""


class SpecTable(BaseModel):
    """A table of a spec: unknown keys, and booleans in the place of numbers, are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, table: Any) -> Any:
        return no_booleans_for_numbers(table, {name: field.annotation for name, field in cls.model_fields.items()})

    def says(self, *keys: str) -> list[str]:
        """Which of these keys are in the file, instead of having their default value."""
        return [key for key in keys if key in self.model_fields_set]


ROCKET_KEYS: Final = frozenset({"kind", "kernels", "grid", "sequence_features"})


class ConvSpec(SpecTable):
    """One masked convolution over the steps with stride 1, followed by a norm and a ReLU.

    Attributes:
        channels: Number of output features, of all branches together.
        kernel: Number of steps it reads for one; a list for convolutions side by side.
        dilation: Distance between these steps.
        norm: The norm after it.
        bottleneck: Number of features that the kernels of a list read, after a product that reduces them; 0 for all.
        pool: Number of steps of one more branch, with the maximum of neighbouring steps; 0 for none.
        residual: Adds, before the ReLU, the input of the block so many blocks before, itself counted; 0 for none.
    """

    channels: int = Field(ge=1)
    kernel: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = 3
    dilation: int = Field(default=1, ge=1)
    norm: Literal["batch", "layer", "none"] = "batch"
    bottleneck: int = Field(default=0, ge=0)
    pool: int = Field(default=0, ge=0)
    residual: int = Field(default=0, ge=0)

    @property
    def kernels(self) -> tuple[int, ...]:
        """The kernels as a list."""
        return (self.kernel,) if isinstance(self.kernel, int) else self.kernel

    @property
    def branches(self) -> int:
        """Number of branches, the maximum counted."""
        return len(self.kernels) + bool(self.pool)

    @property
    def has_branches(self) -> bool:
        """Whether it is more than one plain convolution."""
        return self.branches > 1 or bool(self.bottleneck)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.channels % self.branches:
            raise ValueError(
                f"'channels' {self.channels} must be a multiple of the {self.branches} branches (the kernels, and one "
                "for 'pool')"
            )
        return self


class ModelSpec(SpecTable):
    """The kind of model, and its layers and pooling.

    Attributes:
        kind: `layers` for the layers below, trained by gradient descent; `rocket` for fixed kernels with a linear head,
            which has the keys `kernels`, `grid` and `sequence_features` and no others.
        kernels: For `rocket`: number of features of the head, rounded down to a multiple of 84.
        grid: For `rocket`: whether values are rounded to a grid of each `sequence`, or of the `training` split.
        preset: A name for a set of the keys below (`PRESETS`); a key that is given as well wins.
        conv: Convolutions before the recurrent layers, in order.
        rnn: The recurrent layers; `none` for a per-step MLP instead.
        hidden: Units of each layer and direction; also the size of a token's vector.
        layers: Number of these layers; 0 for none, with `rnn = "none"`.
        bidirectional: Whether each layer also reads backwards.
        self_attention_heads: Heads of the masked self-attention after the layers; 0 for none.
        self_attention_layers: Number of self-attention blocks, if there are heads.
        feed_forward: Units of a per-step network after each self-attention block; 0 for none.
        pooling: How the steps are reduced to one vector; has no meaning for per-step models.
        sequence_features: Numbers of the whole sequence that the head gets beside the pooled steps, or beside the
            features of the kernels. `missing` is the share and the runs of missing values of each feature.
        dropout: Share of units dropped between blocks during training.
        input_dropout: Share of the normalised values, or of the numbers of a token's vector, dropped during training.
        members: Networks with weights of their own, whose logits are averaged.
    """

    kind: Literal["layers", "rocket"] = "layers"
    kernels: int = Field(default=10_000, ge=84)
    grid: Literal["sequence", "training"] = "sequence"
    preset: Preset | None = None
    conv: tuple[ConvSpec, ...] = ()
    rnn: Literal["lstm", "gru", "none"] = "lstm"
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=0)
    bidirectional: bool = True
    self_attention_heads: int = Field(default=0, ge=0)
    self_attention_layers: int = Field(default=1, ge=1)
    feed_forward: int = Field(default=0, ge=0)
    pooling: Literal["attention", "mean", "max", "mean-max", "last"] = "attention"
    sequence_features: tuple[Literal["length", "level", "scale", "missing"], ...] = ()
    dropout: float = Field(default=0.2, ge=0, lt=1)
    input_dropout: float = Field(default=0.0, ge=0, lt=1)
    members: int = Field(default=1, ge=1, le=32)

    @property
    def is_auto(self) -> bool:
        """Whether `train` chooses the layers: by `preset = "auto"`, or because no key says anything about them."""
        return self.preset == "auto" or not self.model_fields_set - {"dropout", "input_dropout", "members"}

    @property
    def body_features(self) -> int:
        """Number of features after the recurrent layers."""
        if self.layers == 0 and self.conv:
            return self.conv[-1].channels
        return self.hidden * (2 if self.bidirectional and self.rnn != "none" else 1)

    @model_validator(mode="after")
    def _attention_fits(self) -> Self:
        heads = self.self_attention_heads
        if not heads:
            if self.says("feed_forward") and self.feed_forward:
                raise ValueError("'feed_forward' belongs to self-attention: it needs 'self_attention_heads'")
            return self
        if self.body_features % heads:
            raise ValueError(
                f"'self_attention_heads' {heads} must divide the {self.body_features} features of the layers "
                "('hidden', or twice that if bidirectional; the 'channels' of the last convolution if 'layers' is 0)"
            )
        if heads * WIDEST_HEAD < self.body_features:
            raise ValueError(
                f"'self_attention_heads' {heads} gives a head more than {WIDEST_HEAD} of the {self.body_features} "
                "features of the layers: use more heads"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        others = self.says(*(name for name in ModelSpec.model_fields if name not in ROCKET_KEYS))
        if self.kind == "rocket" and others:
            raise ValueError(
                f"'{others[0]}' has no meaning with kind = 'rocket', whose other keys are 'kernels', 'grid' and "
                "'sequence_features'"
            )
        if self.kind != "rocket" and (other := self.says("kernels", "grid")):
            raise ValueError(f"'{other[0]}' is for kind = 'rocket'; the layers of a convolution are in [[model.conv]]")
        if self.layers == 0 and (self.rnn != "none" or not self.conv):
            raise ValueError("'layers' 0 is for rnn = 'none' after convolutions: otherwise there would be no layer")
        if len(set(self.sequence_features)) != len(self.sequence_features):
            raise ValueError("'sequence_features': each may occur only once")
        for index, conv in enumerate(self.conv):
            if conv.residual > index + 1:
                raise ValueError(
                    f"'residual' {conv.residual} of convolution {index + 1} goes back further than the first one"
                )
        if self.rnn == "none" and self.bidirectional and self.says("bidirectional"):
            raise ValueError("'bidirectional' has no meaning with rnn = 'none': a per-step MLP reads in no direction")
        return self


_KERNELS: Final = [9, 19, 39]


def _inception(channels: int) -> list[dict[str, Any]]:
    block: dict[str, Any] = {"channels": channels, "kernel": _KERNELS, "bottleneck": 32, "pool": 3}
    return [block, block, block | {"residual": 3}] * 2


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "rnn": {
        "rnn": "lstm",
        "hidden": 64,
        "layers": 2,
        "bidirectional": True,
        "pooling": "attention",
        "dropout": 0.5,
        "input_dropout": 0.5,
    },
    "conv": {
        "conv": _inception(64),
        "rnn": "none",
        "layers": 0,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.2,
    },
    "conv-rnn": {
        "conv": [
            {"channels": 64, "kernel": 9},
            {"channels": 64, "kernel": 5, "residual": 2},
            {"channels": 64, "kernel": 5, "dilation": 4},
            {"channels": 64, "kernel": 3, "dilation": 4, "residual": 2},
        ],
        "rnn": "gru",
        "hidden": 64,
        "layers": 1,
        "bidirectional": True,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.2,
    },
    "transformer": {
        "conv": [{"channels": 64, "kernel": 9}],
        "rnn": "none",
        "hidden": 64,
        "layers": 0,
        "self_attention_heads": 4,
        "self_attention_layers": 2,
        "feed_forward": 128,
        "pooling": "mean-max",
        "sequence_features": ["length"],
        "dropout": 0.1,
    },
}
"""The keys of each preset except `auto`."""

WITHOUT_DATA: Final = "rnn"
"""The preset of `auto` where there is no data to choose by."""


def narrow_conv() -> dict[str, Any]:
    """The keys that differ from `conv` where there are few records."""
    return {"conv": _inception(32)}


def expanded(model: dict[str, Any], task: object) -> dict[str, Any]:
    """The table `[model]` with the keys of its preset, where it does not give them itself.

    Args:
        model: The table as given; an unknown preset is left to the validation of the table.
        task: The task: a per-step model has no pooling.
    """
    name = model.get("preset")
    keys = PRESETS.get(name, {}) if isinstance(name, str) else {}
    if task == "per-step":
        keys = {key: value for key, value in keys.items() if key not in ("pooling", "sequence_features")}
    if model.get("rnn", keys.get("rnn")) == "none":
        keys = {key: value for key, value in keys.items() if key != "bidirectional"}
    return {**keys, **model}
