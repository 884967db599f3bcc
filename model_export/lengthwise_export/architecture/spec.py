"""The spec of the built-in architecture: a TOML file. Only the kind of a step and the labels are required.

Unknown keys and contradicting keys are errors that name them. The keys are documented at the classes below;
`lengthwise_export.architecture.model` builds a model from a spec.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from lengthwise.runtime.manifest import GraphNames, LongPolicy, Manifest, MissingPolicy, StepInput, Task
from lengthwise.wrong_values import all_wrong
from lengthwise_export.architecture.model_spec import ROCKET_KEYS, WITHOUT_DATA, SpecTable, expanded
from lengthwise_export.architecture.model_spec import ConvSpec as ConvSpec
from lengthwise_export.architecture.model_spec import ModelSpec as ModelSpec
from lengthwise_export.errors import SpecError

ROCKET_BATCH_ROWS: Final = 32
"""Most rows of a rocket model in a batch: where its kernels are not those in C, its comparisons need up to 13 KB for
each padded step."""


class InputSpec(SpecTable):
    """The input: each step is `features` numbers, or one of `vocabulary` token ids.

    Attributes:
        features: Number of values of a step.
        feature_names: Their names, in order.
        vocabulary: Number of token ids.
        padding_id: A token id without meaning: its vector is zeros and is not trained.
        missing: The policy for missing values: `refuse` (an error), `zero` (replaced by 0), `mean` (replaced by the
            training mean), `indicator` (the mean, and for each feature another one that is 1 where a value was
            missing).
        normalize: How the graph brings values to mean 0 and standard deviation 1: with the statistics of the
            `training` split, with those of each `sequence`, with `both` (twice the features), or `none`. With
            `sequence-scale`, each sequence is first divided by its own root mean square, over all features together;
            with `feature-scale`, by that of each feature; then the statistics of the training split follow. With
            `auto`, `train` chooses from the data; without data it is `training`.
        max_length: The longest accepted sequence.
        long: The policy for longer sequences.
    """

    features: int | None = Field(default=None, ge=1)
    feature_names: tuple[str, ...] | None = None
    vocabulary: int | None = Field(default=None, ge=1)
    padding_id: int | None = Field(default=None, ge=0)
    missing: Literal["refuse", "zero", "mean", "indicator"] = "refuse"
    normalize: Literal["auto", "training", "sequence", "both", "sequence-scale", "feature-scale", "none"] = "auto"
    max_length: int = Field(default=1024, ge=1)
    long: LongPolicy = "reject"

    @property
    def kind(self) -> Literal["values", "tokens"]:
        """The kind of a step, as in the manifest."""
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
            raise ValueError(f"'{values_only[0]}' is for values: it has no meaning with 'vocabulary' (tokens)")
        if self.padding_id is not None and self.padding_id >= self.vocabulary:
            raise ValueError(f"'padding_id' {self.padding_id} is not in a vocabulary of {self.vocabulary}")
        return self


class OutputSpec(SpecTable):
    """The labels and the task: one label for a sequence, several, or one for each step."""

    labels: tuple[str, ...] = Field(min_length=1)
    task: Task = "single-label"

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if len(self.labels) < 2 and self.task != "multi-label":
            raise ValueError(f"'labels': '{self.task}' needs at least two")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("'labels': a label may occur only once")
        return self


class Spec(SpecTable):
    """A complete spec."""

    input: InputSpec
    model: ModelSpec = ModelSpec()
    output: OutputSpec

    @model_validator(mode="before")
    @classmethod
    def _preset_is_a_set_of_keys(cls, tables: Any) -> Any:
        if isinstance(tables, dict) and isinstance(tables.get("model"), dict):
            output = tables.get("output")
            task = output.get("task") if isinstance(output, dict) else None
            return tables | {"model": expanded(tables["model"], task)}
        return tables

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.kind == "rocket":
            if self.input.vocabulary is not None:
                raise ValueError("'model.kind' = 'rocket' is for values: token ids have no order of size")
            if self.output.task == "per-step":
                raise ValueError("'model.kind' = 'rocket' has no answer for each step: it counts over the steps")
            if self.model.grid == "training" and self.input.normalize not in ("auto", "training", "none"):
                raise ValueError(
                    "'model.grid' = 'training' is for values that do not depend on the whole sequence: set "
                    f"input.normalize to 'training' or 'none', not to '{self.input.normalize}'"
                )
        if self.output.task == "per-step" and (unpooled := self.model.says("pooling", "sequence_features")):
            raise ValueError(f"'model.{unpooled[0]}' has no meaning with output.task = 'per-step': no step is pooled")
        if self.input.kind == "tokens" and set(self.model.sequence_features) - {"length"}:
            raise ValueError("'model.sequence_features' of tokens can only be \"length\": ids have no level or scale")
        return self

    def with_keys(self, **tables: dict[str, Any]) -> Spec:
        """This spec with other values for some keys, such as `input={"normalize": "both"}`.

        A preset gives its keys; None for `preset` removes it.

        Raises:
            SpecError: The keys do not fit together.
        """
        given = self.model_dump(mode="json", exclude_unset=True)
        together = {name: table | tables.get(name, {}) for name, table in ({"model": {}} | given).items()}
        if together["model"].get("preset", "") is None:
            del together["model"]["preset"]
        return Spec.from_table(together)

    def concrete(self) -> Spec:
        """This spec as it is where there is no data to choose by: no key is `auto`."""
        tables: dict[str, dict[str, Any]] = {}
        if self.input.normalize == "auto" and self.input.kind == "values":
            tables["input"] = {"normalize": "training"}
        if self.model.preset == "auto":
            tables["model"] = {"preset": WITHOUT_DATA}
        return self.with_keys(**tables) if tables else self

    @property
    def has_attention(self) -> bool:
        """Whether the graph has the output `attention`."""
        return self.model.kind == "layers" and self.model.pooling == "attention" and self.output.task != "per-step"

    @classmethod
    def from_toml(cls, text: str, *, source: str = "spec") -> Spec:
        """Reads a spec.

        Raises:
            SpecError: It is not TOML or not a spec; the message names all wrong keys.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{source}: not TOML: {error}") from error
        return cls.from_table(table, source=source)

    @classmethod
    def from_table(cls, table: object, *, source: str = "spec") -> Spec:
        """Reads a spec from parsed TOML or JSON.

        Raises:
            SpecError: It is not a spec; the message names all wrong keys.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise SpecError(f"{source}: {all_wrong(error.errors(), _known, whole='the spec')}") from error

    def resolved(self) -> dict[str, dict[str, Any]]:
        """All keys with their values, defaults included, except keys without a meaning in this spec.

        Equivalent specs have equal results, and the defaults of this version are recorded for later versions. A preset
        is recorded as its keys. `from_table` reads it.
        """
        tables: dict[str, dict[str, Any]] = self.concrete().model_dump(mode="json", exclude_none=True)
        tables["model"].pop("preset", None)
        if self.input.kind == "tokens":
            del tables["input"]["missing"], tables["input"]["normalize"]
        if self.model.kind == "rocket":
            tables["model"] = {key: value for key, value in tables["model"].items() if key in ROCKET_KEYS}
            return tables
        del tables["model"]["kernels"], tables["model"]["grid"]
        if self.model.rnn == "none":
            del tables["model"]["bidirectional"]
        if self.output.task == "per-step":
            del tables["model"]["pooling"], tables["model"]["sequence_features"]
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
        """The manifest of a graph of this spec, without promises, digests and `made`."""
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
            max_batch_rows=ROCKET_BATCH_ROWS if self.model.kind == "rocket" else None,
            graph=GraphNames(
                sequences="tokens" if tokens else "values",
                attention="attention" if self.has_attention else None,
                clipped="clipped" if self.model.grid == "training" else None,
            ),
        )


TABLES: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): Spec,
    ("input",): InputSpec,
    ("model",): ModelSpec,
    ("model", "conv"): ConvSpec,
    ("output",): OutputSpec,
}
"""The model of each table of the file, by its path."""


def _known(place: tuple[int | str, ...]) -> Iterable[str]:
    """The keys of the table at a path."""
    return TABLES[tuple(part for part in place if isinstance(part, str))].model_fields


def as_toml(spec: Spec, notes: Sequence[str] = ()) -> str:
    """The keys of a spec that were given, as a file that `Spec.read` reads; the notes are a comment at the top."""
    lines = [f"# {line}" for note in notes for line in (note.splitlines() or [""])]
    tables = spec.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    for name in ("input", "model", "output"):
        if not tables.get(name):
            continue
        lines += [""] if lines else []
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in tables[name].items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            return "[\n" + "".join(f"  {_value(one)},\n" for one in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
