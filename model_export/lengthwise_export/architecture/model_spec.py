"""The table `[model]` of a spec: the kind of model, its layers and pooling; presets are sets of its keys.

`auto` is one of the presets, chosen by `train` from the data; without data it is `rnn`. A spec may override each key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lengthwise_export.errors import no_booleans_for_numbers

Preset = Literal["auto", "rocket", "summaries", "rnn", "conv", "conv-rnn", "transformer"]

_KINDS_OF_PRESETS: Final = ("rocket", "summaries")  # the name of the kind is that of the preset, too

# Features of an attention head. For larger heads, onnxruntime's CPU kernel sums a score in blocks whose size depends on
# the width, so the bits of an answer would depend on the batch
WIDEST_HEAD: Final = 128
ROCKET_KEYS: Final = frozenset({"kind", "kernels", "grid", "sequence_features"})
SUMMARIES_KEYS: Final = frozenset({"kind", "summaries", "classifier", "trees"})


class SpecTable(BaseModel):
    """A table of a spec: unknown keys, and booleans for numbers, are errors. docs/spec.md has the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, table: Any) -> Any:
        """Refuses true and false where a number is wanted, which pydantic would convert to 1 and 0."""
        return no_booleans_for_numbers(table, {name: field.annotation for name, field in cls.model_fields.items()})

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        """Refuses a table with contradictory keys.

        Raises:
            ValueError: A condition of `contradictions` is true; this is its message.
        """
        for is_wrong, why in self.contradictions():
            if is_wrong:
                raise ValueError(why)
        return self

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """Pairs of a condition that makes the table wrong if it is true, and its message; for subclasses."""
        return ()

    def first_stated(self, *keys: str) -> str | None:
        """The first of these keys that the user has set; None if all have their default values."""
        return next((key for key in keys if key in self.model_fields_set), None)


class ConvSpec(SpecTable):
    """One masked convolution over the steps with stride 1, followed by a norm and a ReLU."""

    channels: int = Field(ge=1)  # of all branches together
    kernel: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = 3
    dilation: int = Field(default=1, ge=1)
    norm: Literal["batch", "layer", "none"] = "batch"
    bottleneck: int = Field(default=0, ge=0)  # features that the kernels of a list read, after a product; 0 for all
    pool: int = Field(default=0, ge=0)  # steps of one more branch, with the maximum of neighbouring steps; 0 for none
    residual: int = Field(default=0, ge=0)  # adds the input of an earlier block: 1 of this block, 2 of the one before

    @property
    def kernels(self) -> tuple[int, ...]:
        """The sizes of the kernels, one for each branch that is a convolution."""
        return (self.kernel,) if isinstance(self.kernel, int) else self.kernel

    @property
    def branches(self) -> int:
        """Number of branches: the convolutions, and the maximum if there is one."""
        return len(self.kernels) + (1 if self.pool else 0)

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """The contradiction of channels that cannot be divided evenly among the branches."""
        branches = f"{self.branches} branches (the kernels, and one for 'pool')"
        return ((self.channels % self.branches, f"'channels' {self.channels} must be a multiple of the {branches}"),)


class ModelSpec(SpecTable):
    """The kind of model, and its layers and pooling."""

    kind: Literal["layers", "rocket", "summaries"] = "layers"
    kernels: int = Field(default=10_000, ge=84)  # features of the head, rounded down to a multiple of 84
    grid: Literal["sequence", "training"] = "sequence"
    summaries: Annotated[tuple[str, ...], Field(min_length=1)] = ("length", "missing", "intervals")
    # None: trees, of a kind that is chosen by the number of records
    classifier: Literal["extra-trees", "boosted-trees", "logistic"] | None = None
    trees: int = Field(default=200, ge=50)  # some of them answer each record without having seen it
    preset: Preset | None = None
    conv: tuple[ConvSpec, ...] = ()
    rnn: Literal["lstm", "gru", "none"] = "lstm"  # `none` for a per-step MLP instead
    hidden: int = Field(default=64, ge=1)  # units of each layer and direction; also the size of a token's vector
    layers: int = Field(default=2, ge=0)
    bidirectional: bool = True
    self_attention_heads: int = Field(default=0, ge=0)
    self_attention_layers: int = Field(default=1, ge=1)
    feed_forward: int = Field(default=0, ge=0)  # units of a per-step network after each self-attention block
    pooling: Literal["attention", "mean", "max", "mean-max", "last"] = "attention"
    sequence_features: tuple[Literal["length", "level", "scale", "missing"], ...] = ()
    dropout: float = Field(default=0.2, ge=0, lt=1)
    input_dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _drop_members(cls, table: Any) -> Any:
        """Drops `members = 1`, which specs of earlier versions have: there were ensembles of several networks."""
        if isinstance(table, Mapping) and table.get("members") == 1:
            return {name: value for name, value in table.items() if name != "members"}
        return table

    @property
    def meaningless_keys(self) -> Set[str]:
        """The keys that have no meaning for this kind of model."""
        of_kind = {"rocket": ROCKET_KEYS, "summaries": SUMMARIES_KEYS}
        if self.kind in of_kind:
            of_trees = {"trees"} if self.classifier == "logistic" else set()
            return ModelSpec.model_fields.keys() - of_kind[self.kind] | of_trees
        return {"preset", *ROCKET_KEYS, *SUMMARIES_KEYS} - {"kind", "sequence_features"}

    @property
    def is_auto(self) -> bool:
        """Whether `train` chooses the layers: by `preset = "auto"`, or because no key says anything about them."""
        return self.preset == "auto" or not self.model_fields_set - {"dropout", "input_dropout"}

    @property
    def body_features(self) -> int:
        """Number of features after the recurrent layers or MLP; with `layers = 0`, after the last convolution."""
        if self.layers == 0 and self.conv:
            return self.conv[-1].channels
        return self.hidden * (2 if self.bidirectional and self.rnn != "none" else 1)

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """Contradictions: keys of the other kind of model, keys of layers that the model lacks, unfitting heads."""
        return (*self._wrong_kind(), *self._wrong_layers(), *self._wrong_heads())

    def _wrong_kind(self) -> Sequence[tuple[object, str]]:
        """Pairs of a condition and its message: the keys of one kind of model in the other one."""
        is_layers = self.kind == "layers"
        of_other = self.first_stated(*(name for name in ModelSpec.model_fields if name in self.meaningless_keys))
        of_rocket = self.first_stated("kernels", "grid")
        of_summaries = self.first_stated("summaries", "classifier", "trees")
        keys = "'kernels', 'grid' and 'sequence_features'"
        if self.kind == "summaries":
            keys = "'summaries', 'classifier' and 'trees'"
        if self.kind == "summaries" and self.classifier == "logistic":
            keys = "'summaries' and 'classifier' where that is 'logistic'"
        return (
            (
                not is_layers and of_other,
                f"'{of_other}' has no meaning with kind = '{self.kind}', whose other keys are {keys}",
            ),
            (
                is_layers and of_rocket,
                f"'{of_rocket}' is for kind = 'rocket'; the layers of a convolution are in [[model.conv]]",
            ),
            (is_layers and of_summaries, f"'{of_summaries}' is for kind = 'summaries'"),
        )

    def _wrong_layers(self) -> Sequence[tuple[object, str]]:
        """Pairs of a condition and its message: convolutions, recurrent layers and features that do not fit."""
        too_far = [(index, conv.residual) for index, conv in enumerate(self.conv, start=1) if conv.residual > index]
        return (
            (
                self.layers == 0 and (self.rnn != "none" or not self.conv),
                "'layers' 0 is for rnn = 'none' after convolutions: otherwise there would be no layer",
            ),
            (
                len(set(self.sequence_features)) != len(self.sequence_features),
                "'sequence_features': each may occur only once",
            ),
            *(
                (True, f"'residual' {residual} of convolution {index} goes back further than the first one")
                for index, residual in too_far
            ),
            (
                self.rnn == "none" and self.bidirectional and self.first_stated("bidirectional"),
                "'bidirectional' has no meaning with rnn = 'none': a per-step MLP reads in no direction",
            ),
        )

    def _wrong_heads(self) -> Sequence[tuple[object, str]]:
        """Pairs of a condition and its message: keys of self-attention without heads, and heads that do not fit."""
        heads, features = self.self_attention_heads, self.body_features
        return (
            (
                not heads and self.feed_forward and self.first_stated("feed_forward"),
                "'feed_forward' belongs to self-attention: it needs 'self_attention_heads'",
            ),
            (
                heads and features % heads,
                f"'self_attention_heads' {heads} must divide the {features} features of the layers ('hidden', or "
                "twice that if bidirectional; the 'channels' of the last convolution if 'layers' is 0)",
            ),
            (
                heads and heads * WIDEST_HEAD < features,
                f"'self_attention_heads' {heads} gives a head more than {WIDEST_HEAD} of the {features} features of "
                "the layers: use more heads",
            ),
        )


def _inception(channels: int) -> list[dict[str, Any]]:
    """The tables `[[model.conv]]` of InceptionTime: twice three blocks, with a residual connection over each three."""
    block: dict[str, Any] = {"channels": channels, "kernel": [9, 19, 39], "bottleneck": 32, "pool": 3}
    return [block, block, block | {"residual": 3}] * 2


_LENGTH: Final[dict[str, Any]] = {"pooling": "mean-max", "sequence_features": ["length"]}

# The keys of each preset except `auto`
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
    "conv": {"conv": _inception(64), "rnn": "none", "layers": 0, **_LENGTH, "dropout": 0.2},
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
        **_LENGTH,
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
        **_LENGTH,
        "dropout": 0.1,
    },
}
NARROW_CONV: Final[dict[str, Any]] = {"conv": _inception(32)}  # what differs from `conv` where there are few records
WITHOUT_DATA: Final = "rnn"  # the preset of `auto` where there is no data to choose by


def with_preset_keys(model: dict[str, Any], task: object) -> dict[str, Any]:
    """The table `[model]` with the keys of its preset added; keys that it has itself are kept.

    `task` is that of the spec, unchecked as the keys are: a per-step model gets no keys of pooling.
    """
    name = model.get("preset")
    if name in _KINDS_OF_PRESETS:  # this preset stands for the kind of model, and adds no keys of layers
        return {"kind": name} | {key: value for key, value in model.items() if key != "preset"}
    keys = PRESETS.get(name, {}) if isinstance(name, str) else {}
    if task == "per-step":
        keys = {key: value for key, value in keys.items() if key not in ("pooling", "sequence_features")}
    if model.get("rnn", keys.get("rnn")) == "none":
        keys = {key: value for key, value in keys.items() if key != "bidirectional"}
    return {**keys, **model}
