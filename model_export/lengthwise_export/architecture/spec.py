"""The spec of the built-in architecture: a TOML file in which only what a step is and the labels must stand.

A key that does not exist, and keys that do not fit together, are refused by name before anything is built. What a key
means stands beside it here; `lengthwise_export.architecture.model` builds from the result.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lengthwise.runtime.manifest import GraphNames, LongPolicy, Manifest, MissingPolicy, StepInput, Task
from lengthwise.wrong_values import all_wrong, no_booleans_for_numbers
from lengthwise_export.errors import SpecError

WIDEST_HEAD = 128
"""Features of an attention head, at most: past that onnxruntime's CPU kernel sums a score in blocks whose size depends
on the width, and a sequence would not get the same bits alone and in company."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, table: Any) -> Any:
        return no_booleans_for_numbers(table, {name: field.annotation for name, field in cls.model_fields.items()})

    def says(self, *keys: str) -> list[str]:
        """Which of the keys stand in the file, as against taken by default."""
        return [key for key in keys if key in self.model_fields_set]


class InputSpec(_Table):
    """What one step is: `features` numbers, or one of `vocabulary` token ids.

    Attributes:
        features: Numbers a step.
        feature_names: Their names, in order.
        vocabulary: How many token ids there are.
        padding_id: A token id that stands for nothing: it is embedded as zeros, and that is never trained.
        missing: What a missing value becomes: `refuse` (not taken), `zero` (the number 0), `mean` (the training mean),
            `indicator` (the mean, and a 0/1 feature per feature that says what was missing).
        normalize: Whether values are brought to mean 0 and standard deviation 1 in the graph.
        max_length: Longest sequence accepted, and proved.
        long: What happens to a longer one.
    """

    features: int | None = Field(default=None, ge=1)
    feature_names: tuple[str, ...] | None = None
    vocabulary: int | None = Field(default=None, ge=1)
    padding_id: int | None = Field(default=None, ge=0)
    missing: Literal["refuse", "zero", "mean", "indicator"] = "refuse"
    normalize: bool = True
    max_length: int = Field(default=1024, ge=1)
    long: LongPolicy = "reject"

    @property
    def kind(self) -> Literal["values", "tokens"]:
        """What a step is, in the manifest's word."""
        return "values" if self.vocabulary is None else "tokens"

    @model_validator(mode="after")
    def _is_values_or_tokens(self) -> Self:
        if (self.features is None) == (self.vocabulary is None):
            raise ValueError("exactly one of 'features' and 'vocabulary' must be given")
        if self.vocabulary is None:
            if self.padding_id is not None:
                raise ValueError("'padding_id' is for token models: it needs 'vocabulary'")
            if self.feature_names is not None and len(self.feature_names) != self.features:
                raise ValueError(f"'feature_names' has {len(self.feature_names)} names for {self.features} features")
            return self
        if values_only := self.says("feature_names", "missing", "normalize"):
            raise ValueError(f"'{values_only[0]}' is for values: a token model ('vocabulary') has none of it")
        if self.padding_id is not None and self.padding_id >= self.vocabulary:
            raise ValueError(f"'padding_id' {self.padding_id} is no id of a vocabulary of {self.vocabulary}")
        return self


class ConvSpec(_Table):
    """One masked convolution over the steps, stride 1, with a norm and a ReLU behind it."""

    channels: int = Field(ge=1)
    kernel: int = Field(default=3, ge=1)
    dilation: int = Field(default=1, ge=1)
    norm: Literal["batch", "layer", "none"] = "batch"


class ModelSpec(_Table):
    """The body and how steps become one answer.

    Attributes:
        conv: Convolutions before the recurrent layers, in order.
        rnn: The recurrent layers; `none` is a per-step MLP in their place.
        hidden: Units of each layer and direction.
        layers: How many of them.
        bidirectional: Whether each layer also reads backwards.
        self_attention_heads: Heads of one masked self-attention block after the layers; 0 for no such block.
        pooling: How steps become one vector; a per-step model has none.
        dropout: Share of units dropped between blocks while training.
    """

    conv: tuple[ConvSpec, ...] = ()
    rnn: Literal["lstm", "gru", "none"] = "lstm"
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=1)
    bidirectional: bool = True
    self_attention_heads: int = Field(default=0, ge=0)
    pooling: Literal["attention", "mean", "max", "last"] = "attention"
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @property
    def body_features(self) -> int:
        """Features a step that the body gives to pooling and head."""
        return self.hidden * (2 if self.bidirectional and self.rnn != "none" else 1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.rnn == "none" and self.bidirectional and self.says("bidirectional"):
            raise ValueError("'bidirectional' has no meaning with rnn = 'none': a per-step MLP reads in no direction")
        if self.self_attention_heads and self.body_features % self.self_attention_heads:
            raise ValueError(
                f"'self_attention_heads' {self.self_attention_heads} must divide the {self.body_features} features "
                "that the layers give ('hidden', twice where bidirectional)"
            )
        if self.self_attention_heads * WIDEST_HEAD < self.body_features and self.self_attention_heads:
            raise ValueError(
                f"'self_attention_heads' {self.self_attention_heads} gives a head more than {WIDEST_HEAD} of the "
                f"{self.body_features} features that the layers give: use more heads"
            )
        return self


class OutputSpec(_Table):
    """The labels, and whether a sequence has one of them, several, or one a step."""

    labels: tuple[str, ...] = Field(min_length=1)
    task: Task = "single-label"

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if len(self.labels) < 2 and self.task != "multi-label":
            raise ValueError(f"'labels': '{self.task}' chooses between at least two")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("'labels': every label may stand there once")
        return self


class Spec(_Table):
    """A whole spec."""

    input: InputSpec
    model: ModelSpec = ModelSpec()
    output: OutputSpec

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.output.task == "per-step" and self.model.says("pooling"):
            raise ValueError("'model.pooling' has no meaning with output.task = 'per-step': no step is pooled")
        return self

    @property
    def has_attention(self) -> bool:
        """Whether the graph has the output `attention`."""
        return self.model.pooling == "attention" and self.output.task != "per-step"

    @classmethod
    def from_toml(cls, text: str, *, source: str = "spec") -> Spec:
        """Reads a spec.

        Raises:
            SpecError: It is not TOML, or not a spec; says every key that is wrong.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{source}: not TOML: {error}") from error
        return cls.from_table(table, source=source)

    @classmethod
    def from_table(cls, table: object, *, source: str = "spec") -> Spec:
        """Reads a spec from what TOML or JSON holds.

        Raises:
            SpecError: It is none; says every key that is wrong.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise SpecError(f"{source}: {all_wrong(error.errors(), _known, whole='the spec')}") from error

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Every key with its value, defaults too, but for keys without a meaning in this spec; `from_table` reads it.

        Two specs that ask for the same have the same, whatever stands in their files, and what a default was stays
        known when a later version has another.
        """
        tables: dict[str, dict[str, Any]] = self.model_dump(mode="json", exclude_none=True)
        if self.input.kind == "tokens":
            del tables["input"]["missing"], tables["input"]["normalize"]
        if self.model.rnn == "none":
            del tables["model"]["bidirectional"]
        if self.output.task == "per-step":
            del tables["model"]["pooling"]
        return tables

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Reads a `.toml` file.

        Raises:
            SpecError: It cannot be read, or is not a spec.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path} cannot be read: {error}") from error
        return cls.from_toml(text, source=str(path))

    def manifest(
        self,
        *,
        name: str,
        version: int,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Manifest:
        """The manifest of a graph of this spec, but for promises, digests and how it was made."""
        tokens = self.input.kind == "tokens"
        missing: MissingPolicy = self.input.missing
        return Manifest(
            name=name,
            version=version,
            input=StepInput(
                kind=self.input.kind,
                features=self.input.features,
                feature_names=self.input.feature_names,
                vocabulary=self.input.vocabulary,
                padding_id=self.input.padding_id,
                mean=mean,
                std=std,
            ),
            labels=self.output.labels,
            task=self.output.task,
            max_length=self.input.max_length,
            long=self.input.long,
            missing=missing,
            graph=GraphNames(
                sequences="tokens" if tokens else "values",
                attention="attention" if self.has_attention else None,
            ),
        )


TABLES: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): Spec,
    ("input",): InputSpec,
    ("model",): ModelSpec,
    ("model", "conv"): ConvSpec,
    ("output",): OutputSpec,
}
"""What stands under which keys of the file."""


def _known(place: tuple[int | str, ...]) -> Iterable[str]:
    """The keys of the table at a place."""
    return TABLES[tuple(part for part in place if isinstance(part, str))].model_fields
