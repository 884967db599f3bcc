"""The spec of the built-in architecture: a TOML file. Only the kind of a step and the labels are required.

Unknown keys and contradicting keys are errors that name them. The keys are documented in docs/spec.md;
`lengthwise_export.architecture.model` builds a model from a spec. A spec remembers which keys the user has set
(pydantic's `model_fields_set`), as opposed to keys with their default values.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from lengthwise.exporter_api.contract import (
    MOST_STATIC,
    FeatureNames,
    GraphNames,
    LongPolicy,
    Manifest,
    StaticInput,
    StepInput,
    StopAt,
)
from lengthwise_export.architecture.model_spec import (
    WITHOUT_DATA,
    ConvSpec,
    ModelSpec,
    SpecTable,
    with_preset_keys,
)
from lengthwise_export.errors import SpecError, all_wrong

# Of a rocket model in a batch: where its kernels are not those in C, its comparisons need up to 13 KB for each step
ROCKET_BATCH_ROWS: Final = 32


Normalization = Literal["auto", "training", "sequence", "both", "sequence-scale", "feature-scale", "none"]


def _named_normalization(value: Any) -> Any:
    """Replaces true by "training", and false by "none": files may spell these two normalisations so."""
    return {True: "training", False: "none"}[value] if isinstance(value, bool) else value


class InputSpec(SpecTable):
    """The input: each step is `features` numbers, or one of `vocabulary` token ids."""

    features: int | None = Field(default=None, ge=1)
    feature_names: FeatureNames | None = None
    vocabulary: int | None = Field(default=None, ge=1)
    padding_id: int | None = Field(default=None, ge=0)
    padding: Literal["zeros", "nan"] | None = None  # of the data files, as `datasets.input_sequences` says
    missing: Literal["refuse", "zero", "mean", "indicator", "handled"] = "refuse"
    normalize: Annotated[Normalization, BeforeValidator(_named_normalization)] = "auto"
    min_length: int = Field(default=1, ge=1)
    max_length: int = Field(default=1024, ge=1)
    long: LongPolicy = "reject"
    static: int | None = Field(default=None, ge=1, le=MOST_STATIC)
    static_names: FeatureNames | None = None
    static_categories: dict[str, tuple[str, ...]] = Field(default={})

    @property
    def static_count(self) -> int:
        """The number of static values."""
        return self.static or len(self.static_names or ())

    @property
    def static_input(self) -> StaticInput | None:
        """The static values beside a sequence, as in the manifest."""
        if not self.static_count:
            return None
        return StaticInput(
            count=self.static_count,
            names=self.static_names,
            categories=self.static_categories,
            missing=self.missing != "refuse",
        )

    @property
    def kind(self) -> Literal["values", "tokens"]:
        """The kind of a step, as in the manifest."""
        return "values" if self.vocabulary is None else "tokens"

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """Contradictions: both kinds of a step or none, keys of the other kind, values that do not fit each other."""
        of_values = self.first_stated("feature_names", "missing", "normalize")
        names, vocabulary, padding_id = self.feature_names, self.vocabulary, self.padding_id
        return (
            (
                self.min_length > self.max_length,
                f"'min_length' {self.min_length} is more than 'max_length', {self.max_length}",
            ),
            (
                (self.features is None) == (vocabulary is None),
                "exactly one of 'features' and 'vocabulary' must be given",
            ),
            (
                vocabulary is not None and of_values,
                f"'{of_values}' is for values: it has no meaning with 'vocabulary' (tokens)",
            ),
            (
                vocabulary is not None and padding_id is not None and padding_id >= vocabulary,
                f"'padding_id' {padding_id} is not in a vocabulary of {vocabulary}",
            ),
            (
                vocabulary is None and padding_id is not None,
                "'padding_id' is for token models: it needs 'vocabulary'",
            ),
            (
                names is not None and len(names) != self.features,
                f"'feature_names' has {len(names or ())} names for {self.features} features",
            ),
            *self._static_contradictions(),
        )

    def _static_contradictions(self) -> Sequence[tuple[object, str]]:
        """Contradictions of the values beside a sequence."""
        names, categories = self.static_names, self.static_categories
        return (
            (
                names is not None and len(names) != self.static_count,
                f"'static_names' has {len(names or ())} names for {self.static_count} static values",
            ),
            (
                categories.keys() - {*(names or map(str, range(self.static_count)))},
                "'static_categories' names a value that is not among 'static_names'",
            ),
            (
                any(len({*values}) < max(len(values), 1) for values in categories.values()),
                "'static_categories' has no value, or one twice",
            ),
        )


class OutputSpec(SpecTable):
    """The labels and the task: one label for a sequence, several, or one for each step."""

    labels: tuple[str, ...] = Field(min_length=1)
    task: Literal["single-label", "multi-label", "per-step"] = "single-label"
    # From where on the answer to a sequence that goes on is `decided`: the label's probability, and the steps so far
    stop_probability: float | None = Field(default=None, gt=0, le=1)
    stop_steps: int = Field(default=1, ge=1)

    @property
    def stop_at(self) -> StopAt | None:
        """Where a sequence is decided; None if nowhere."""
        probability = self.stop_probability
        return None if probability is None else StopAt(probability=probability, steps=self.stop_steps)

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """Contradictions: too few labels for the task, and a label that occurs twice."""
        return (
            (len(self.labels) < 2 and self.task != "multi-label", f"'labels': '{self.task}' needs at least two"),
            (len(set(self.labels)) != len(self.labels), "'labels': a label may occur only once"),
            (
                self.stop_probability is not None and self.task != "single-label",
                "'stop_probability' is for one label of a sequence",
            ),
        )


class Spec(SpecTable):
    """A complete spec."""

    input: InputSpec
    model: ModelSpec = ModelSpec()
    output: OutputSpec

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, tables: Any) -> Any:
        """Adds the keys of the preset to the table `[model]`; what is no table stays, and is refused later."""
        if isinstance(tables, dict) and isinstance(tables.get("model"), dict):
            output = tables.get("output")
            task = output.get("task") if isinstance(output, dict) else None
            return tables | {"model": with_preset_keys(tables["model"], task)}
        return tables

    def contradictions(self) -> Sequence[tuple[object, str]]:
        """Contradictions between the tables: of the kind of model, the kind of a step, and the task."""
        step, model, per_step = self.input, self.model, self.output.task == "per-step"
        is_layers, is_tokens = model.kind == "layers", step.kind == "tokens"
        of_pooling = model.first_stated("pooling", "sequence_features")
        return (
            (
                not is_layers and is_tokens,
                f"'model.kind' = '{model.kind}' is for values: token ids have no order of size",
            ),
            (
                not is_layers and per_step,
                f"'model.kind' = '{model.kind}' has no answer for each step: it counts over the steps",
            ),
            *self._contradictions_of_summaries(),
            (
                model.grid == "training" and step.normalize not in ("auto", "training", "none"),
                "'model.grid' = 'training' is for values that do not depend on the whole sequence: set "
                f"input.normalize to 'training' or 'none', not to '{step.normalize}'",
            ),
            (
                per_step and of_pooling,
                f"'model.{of_pooling}' has no meaning with output.task = 'per-step': no step is pooled",
            ),
            (
                is_tokens and {*model.sequence_features} - {"length"},
                "'model.sequence_features' of tokens can only be \"length\": ids have no level or scale",
            ),
        )

    def _contradictions_of_summaries(self) -> Sequence[tuple[object, str]]:
        """Contradictions of summaries, which read each value of a whole sequence as it is."""
        step, model, is_summaries = self.input, self.model, self.model.kind == "summaries"
        fitting = {
            "missing": ("refuse", "handled"),
            "normalize": ("auto", "none"),
            "long": ("reject",),
            "static_count": (0,),
        }
        obstacle = next((key for key, values in fitting.items() if getattr(step, key) not in values), "")
        return (
            (
                is_summaries and obstacle,
                f"'input.{obstacle.removesuffix('_count')}' = '{getattr(step, obstacle, None)}' has no meaning with "
                "model.kind = 'summaries', which reads each value of a whole sequence as it is; missing values are "
                "'handled' or refused",
            ),
            (
                not is_summaries and step.missing == "handled",
                "'input.missing' = 'handled' is for model.kind = 'summaries'; layers and kernels need 'zero', 'mean' "
                "or 'indicator'",
            ),
            (
                model.classifier == "boosted-trees" and self.output.task == "multi-label",
                "'model.classifier' = 'boosted-trees' is for one label: 'extra-trees' takes several",
            ),
        )

    def with_keys(self, **tables: dict[str, Any]) -> Spec:
        """A copy with these keys set, such as `input={"normalize": "both"}`; `preset: None` removes the preset."""
        stated_tables = self.model_dump(mode="json", exclude_unset=True)
        merged = {name: table | tables.get(name, {}) for name, table in ({"model": {}} | stated_tables).items()}
        if merged["model"].get("preset", "") is None:
            del merged["model"]["preset"]
        return Spec.from_table(merged)

    def concrete(self) -> Spec:
        """A copy without `auto`: a key that training would choose from data gets a fixed value instead."""
        tables: dict[str, dict[str, Any]] = {}
        if self.input.normalize == "auto" and self.input.kind == "values" and self.model.kind != "summaries":
            tables["input"] = {"normalize": "training"}
        if self.model.preset == "auto":
            tables["model"] = {"preset": WITHOUT_DATA}
        return self.with_keys(**tables) if tables else self

    @property
    def has_attention(self) -> bool:
        """Whether the graph has the output `attention`."""
        return self.model.kind == "layers" and self.model.pooling == "attention" and self.output.task != "per-step"

    @classmethod
    def from_table(cls, table: object, *, source: str = "spec") -> Spec:
        """Reads a spec from parsed TOML or JSON.

        Raises:
            SpecError: It is not a spec; the message names all wrong keys.
        """
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise SpecError(f"{source}: {all_wrong(error.errors(), _known_keys, document='the spec')}") from error

    def resolved(self) -> dict[str, dict[str, Any]]:
        """The tables with the values of all keys, also those by default or by a preset; without meaningless keys.

        Equivalent specs have equal results, and the defaults of this version are recorded for later versions.
        """
        is_rocket, per_step = self.model.kind == "rocket", self.output.task == "per-step"
        meaningless = (
            (self.input.kind == "tokens", {"missing", "normalize"}),
            (not self.input.static_count, {"static_categories"}),
            (self.model.kind == "summaries", {"normalize"}),
            (True, self.model.meaningless_keys),
            (not is_rocket and self.model.rnn == "none", {"bidirectional"}),
            (per_step, {"pooling", "sequence_features"}),
        )
        meaningless_keys = {key for applies, keys in meaningless if applies for key in keys}
        tables = self.concrete().model_dump(mode="json", exclude_none=True)
        return {
            name: {key: value for key, value in table.items() if key not in meaningless_keys}
            for name, table in tables.items()
        }

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Reads a `.toml` file; SpecError if it cannot be read, or is not a spec."""
        return cls.from_table(tables_of(path), source=str(path))

    def manifest(
        self,
        *,
        name: str,
        version: int,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Manifest:
        """Makes the manifest of a graph of this spec, without promises, digests and `made`.

        `mean` and `std` are the statistics of each feature in the training split; None if they are unknown.
        """
        step = self.input
        input_keys = step.model_dump(include={"features", "vocabulary", "padding_id"}) | {"names": step.feature_names}
        return Manifest(
            name=name,
            version=version,
            input=StepInput(kind=step.kind, mean=mean, std=std, static=step.static_input, **input_keys),
            labels=self.output.labels,
            task=self.output.task,
            min_length=step.min_length,
            max_length=step.max_length,
            long=step.long,
            missing=step.missing,
            stop_at=self.output.stop_at,
            max_batch_rows=ROCKET_BATCH_ROWS if self.model.kind == "rocket" else None,
            graph=GraphNames(
                sequences=step.kind,
                attention="attention" if self.has_attention else None,
                clipped="clipped" if self.model.grid == "training" else None,
            ),
        )


# The model of each table of the file, by its path
TABLES: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): Spec,
    ("input",): InputSpec,
    ("model",): ModelSpec,
    ("model", "conv"): ConvSpec,
    ("output",): OutputSpec,
}


def _known_keys(keys: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that a table of the file may have; `keys` is its path, as pydantic's errors give it, with indices."""
    return TABLES[tuple(part for part in keys if isinstance(part, str))].model_fields


def tables_of(path: Path) -> dict[str, Any]:
    """Reads the tables of a `.toml` file without checking their keys.

    Raises:
        SpecError: The file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error


def as_toml(tables: Spec | Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The text of a TOML file that `Spec.read` reads: the keys that a spec has set, or those of tables.

    `notes` become a comment at the top.
    """
    lines = [f"# {line}" for note in notes for line in (note.splitlines() or [""])]
    if isinstance(tables, Spec):
        tables = tables.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    for name, keys in tables.items():
        if keys:
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in keys.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(name: str) -> str:
    """A key in TOML's syntax: in quotes, if it has other signs than a bare key may have."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else str(_value(name))


def _value(value: Any) -> str:
    """A value in TOML's syntax; a list of tables is written over several lines."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            return "[\n" + "".join(f"  {_value(item)},\n" for item in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
