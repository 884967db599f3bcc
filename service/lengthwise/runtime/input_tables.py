"""What goes into a graph, as the manifest says it: steps, static values, further sequences, states.

The tables are part of `Manifest.input` and `Manifest.streaming`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from lengthwise.padding import Steps
from lengthwise.runtime.feature_names import FeatureNames, are_names
from lengthwise.wrong_values import counted

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
"""A model's name: also a folder, a URL segment and a metric label, so its alphabet is small."""
Fit = Literal["pad", "resample"]
"""How a graph brings a sequence to the width of its model: zeros behind it, or linear interpolation of its steps."""


MOST_STATIC: Final = 4096
"""Most static values of a model."""
MISSING_SHARE: Final = 0.1
"""Part of the values that are drawn as NaN, for a model that accepts missing values."""


class ManifestTable(BaseModel):
    """A table of a manifest: immutable, without unknown keys, infinity or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StaticInput(ManifestTable):
    """The static values beside a sequence: the graph's input `static`, `[rows, count]` float32.

    A category is one of a list of texts; the graph gets its index.
    """

    count: int = Field(ge=1, le=MOST_STATIC)
    names: FeatureNames | None = None  # of the values, in order, if they are known
    # The values of those that are categories, by name; of values without names, by their index as a text
    categories: dict[str, tuple[str, ...]] = Field(default={})
    missing: bool = False  # whether the graph takes NaN for a value that is no category, and that was verified

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Checks that there is a name for each value, and that categories are of values that there are.

        Raises:
            ValueError: They are not.
        """
        if self.names is not None and len(self.names) != self.count:
            raise ValueError(f"input.static.names has {len(self.names)} entries for {counted(self.count, 'value')}")
        for name, values in self.categories.items():
            if name not in self.value_names or not values or len({*values}) != len(values):
                raise ValueError(f"input.static.categories: {name!r} is no value, or has none, or has one twice")
        return self

    @cached_property
    def value_names(self) -> tuple[str, ...]:
        """The names of the values; without names, their indices as texts."""
        return self.names or tuple(map(str, range(self.count)))

    def drawn(self, random: np.random.Generator) -> NDArray[np.float32]:
        """Draws static values `[count]`: of a category one of its indices, else a number of mean 0 and deviation 1.

        If the model accepts missing numbers there, a tenth of them are NaN.
        """
        values = random.standard_normal(self.count)
        if self.missing:
            values[random.random(self.count) < MISSING_SHARE] = np.nan
        for index, name in enumerate(self.value_names):
            if name in self.categories:
                values[index] = random.integers(len(self.categories[name]))
        return values.astype(np.float32)


class StreamState(ManifestTable):
    """A state of a model that streams: the graph's input NAME and its output NAME_next, both `[rows, *shape]`."""

    name: str
    shape: tuple[int, ...] = ()  # without rows
    dtype: Literal["float32", "float64", "int32", "int64"] = "float32"
    initial: float = 0.0  # each of its values where a sequence begins

    @property
    def counts(self) -> bool:
        """Whether it is a number of steps."""
        return self.dtype == "int64" and self.shape == (1,)


class StopAt(ManifestTable):
    """Where a sequence that goes on is decided: its label has this probability, and it has so many steps so far.

    A service says so in the answer, and does nothing else about it.
    """

    probability: float = Field(gt=0, le=1)
    steps: int = Field(default=1, ge=1)

    def is_reached(self, probability: float, steps: int) -> bool:
        """Whether a label of this probability after so many steps is decided."""
        return bool(steps >= self.steps and np.float32(probability) >= np.float32(self.probability))


class StreamPromise(ManifestTable):
    """How far the answer after any chunks may be from the answer to the whole."""

    bits: bool = False  # whether all bits were equal
    max_difference: float = Field(default=0.0, ge=0)  # the largest absolute difference of a logit; 0 with `bits`


_STEPS_SEEN: Final = "steps_seen"  # the state of an exported model that counts its steps
_STRUCT_KINDS: Final = {"float32": "f", "float64": "d", "int32": "i", "int64": "q"}


class Streaming(ManifestTable):
    """What a model needs to answer chunk by chunk: its states, in the order of the text of a state."""

    states: tuple[StreamState, ...] = Field(min_length=1)
    state_bytes: int = Field(ge=1)  # of the values of all states of a sequence
    max_steps: int = Field(default=10_000_000, ge=1)  # of a sequence that is sent with states
    look_ahead_steps: int = Field(default=0, ge=0)
    promise: StreamPromise = StreamPromise()

    @model_validator(mode="after")
    def _check_bytes(self) -> Self:
        if self.row.itemsize != self.state_bytes:
            raise ValueError(f"streaming.state_bytes: the values of the states are {self.row.itemsize} bytes")
        return self

    @cached_property
    def row(self) -> np.dtype[Any]:
        """The type of all states of a sequence: by their names, in order, little-endian and without gaps."""
        return np.dtype([(state.name, np.dtype(state.dtype).newbyteorder("<"), state.shape) for state in self.states])

    @cached_property
    def form(self) -> str:
        """The numbers of the same bytes as `struct` names them, each kind after its count."""
        return "".join(f"{math.prod(state.shape)}{_STRUCT_KINDS[state.dtype]}" for state in self.states)

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """The names of the states that count the steps of the whole sequence."""
        return tuple(state.name for state in self.states if state.name == _STEPS_SEEN and state.counts)


class StepInput(ManifestTable):
    """What one step of a sequence is, and what stands beside the sequence."""

    # `values`: `features` float32 numbers per step. `tokens`: one id per step, 0 to `vocabulary` - 1
    kind: Literal["values", "tokens"] = "values"
    features: int | None = Field(default=None, ge=1)  # numbers per step; for `values` only
    names: FeatureNames | None = None  # of the features, in order, if they are known
    # Of each feature over the valid, present values of the training split; used inside the graph
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    vocabulary: int | None = Field(default=None, ge=1)  # number of token ids; for `tokens` only
    padding_id: int | None = Field(default=None, ge=0)  # the token id that the model itself treats as padding
    static: StaticInput | None = None  # the values beside the sequence, if the model takes any
    sequences: tuple[SequenceInput, ...] = Field(default=(), max_length=4)  # all, if the model takes more than one
    # The only width that the model inside the graph takes, and how the graph brings each sequence to it
    width: int | None = Field(default=None, ge=1)
    fit: Fit | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename_feature_names(cls, table: Any) -> Any:
        """The table with `names` in the place of `feature_names`, the key of older exporters.

        `names` is None if there are none, or one is not valid. A table without the old key is returned unchanged.
        """
        if not isinstance(table, dict) or "feature_names" not in table:
            return table
        table = dict(table)
        names = table.pop("feature_names")
        are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return table | {"names": names if names and are_texts and are_names(names) else None}

    @property
    def most_steps(self) -> int | None:
        """The longest sequence that fits into the model's width; None if any does."""
        return self.width if self.fit == "pad" else None

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> Self:
        """Checks that the keys are those of the kind of a step, and that each list has one entry for each feature.

        Raises:
            ValueError: They are not.
        """
        if (self.width is None) != (self.fit is None) or (self.fit == "resample" and self.kind == "tokens"):
            raise ValueError("input.width and input.fit belong together, and token ids are padded only")
        has_features, has_vocabulary = self.features is not None, self.vocabulary is not None
        if has_features != (self.kind == "values") or has_vocabulary != (self.kind == "tokens"):
            raise ValueError("input.kind 'values' wants 'features' alone, 'tokens' wants 'vocabulary' alone")
        for field in ("names", "mean", "std"):
            entries = getattr(self, field)
            if entries is not None and len(entries) != self.features:
                raise ValueError(f"input.{field} has {len(entries)} entries for {self.features} features")
        if len({sequence.name for sequence in self.sequences}) != len(self.sequences) or len(self.sequences) == 1:
            raise ValueError("input.sequences: two or more, each with a name of its own")
        for index, sequence in enumerate(self.sequences):
            step = sequence.step  # raises where its keys are wrong
            if not index and (step.features, step.vocabulary) != (self.features, self.vocabulary):
                raise ValueError("input.sequences: the first has the features, or the vocabulary, of the input itself")
        return self

    @property
    def static_names(self) -> tuple[str, ...]:
        """The names of the static values; none if the model takes none, or they have no names."""
        return (None if self.static is None else self.static.names) or ()

    @cached_property
    def has_more(self) -> bool:
        """Whether there is more to a row than the steps of one sequence: static values, or further sequences."""
        return self.static is not None or bool(self.sequences)

    def zeros(self, length: int) -> Steps:
        """A sequence of zeros, or of the token id 0."""
        if self.kind == "tokens":
            return np.zeros(length, dtype=np.int64)
        return np.zeros((length, self.features or 1), dtype=np.float32)


class SequenceInput(ManifestTable):
    """One of several sequences: its name, what its steps are, and how many it has at most.

    The first one is the sequence of `Manifest.input` and `Manifest.graph`. Of a further one, the graph's inputs are
    NAME, `[rows, width, features]` float32 or `[rows, width]` int64, and NAME_lengths, `[rows]` int32.
    """

    name: Name
    features: int | None = None
    vocabulary: int | None = None
    max_length: int = Field(default=1024, ge=1)

    @cached_property
    def step(self) -> StepInput:
        """What one step of this sequence is."""
        kind: Literal["values", "tokens"] = "values" if self.vocabulary is None else "tokens"
        return StepInput(kind=kind, features=self.features, vocabulary=self.vocabulary)
