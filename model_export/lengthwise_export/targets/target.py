"""What every TARGET has once it is read: a model to check, its graph, and what an export or a check says about it.

Each kind of target is a class of its own, which knows how its graph is built, compared and described.
`torch_targets.py` reads targets that run in torch, `graph_targets.py` those that are graphs.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from lengthwise.exporter_api.contract import (
    MANIFEST_FILE,
    BatchLogits,
    GraphNames,
    Manifest,
    PaddedBatch,
    StepInput,
    digest,
)
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.architecture.trained import UNTRAINED, TrainingRecord
from lengthwise_export.checking.baseline import is_finite
from lengthwise_export.checking.recording import Subject
from lengthwise_export.errors import ConfigurationError, RunError, counted
from lengthwise_export.options import TargetOptions
from lengthwise_export.tracing.process_wide import torch_threads

if TYPE_CHECKING:
    import onnx

    from lengthwise_export.checking.states import CarriedStates
    from lengthwise_export.checking.trace_torch import TorchSubject
    from lengthwise_export.options import PaddingCut
__all__ = [
    "LARGE",
    "MANIFEST_FILE",
    "DirectoryTarget",
    "GraphTarget",
    "ModuleTarget",
    "ScoreKind",
    "SpecTarget",
    "Target",
    "TargetKind",
    "TorchTarget",
    "check_options_agree",
    "labels_of",
    "one_torch_thread",
    "require_applicable",
    "threads_of_check",
]

ScoreKind = Literal["logits", "probabilities"]

TargetKind = Literal["spec", "checkpoint", "module", "keras", "onnx", "directory"]  # What a text may name


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A model from any framework, to be checked and exported."""

    traced: ClassVar[bool] = False  # Whether its graph is traced from torch, so that it can be compared with it

    text: str  # Its name in messages
    subject: Subject  # The model, as a check runs it
    labels: tuple[str, ...]  # The names of the classes, in the order of the outputs
    per_step: bool  # Whether it answers each step, and not each sequence
    names: GraphNames  # The names of the inputs and outputs of its graph
    # Whether it takes the steps alone. Then its graph lacks the input `names.lengths`, which a mend adds, and
    # `subject` runs a batch as if it had no padding
    blind: bool = False
    is_object: bool = False  # Whether the caller passed an object, and not a text
    notices: tuple[str, ...] = ()  # What a user should know about how it was read
    scores: ScoreKind | None = None  # What its output is; None if the model does not say that
    min_length: int = 1  # The shortest sequence that it is known to accept, in steps
    promise: str | None = None  # What its manifest promises of its answers, as a sentence; None if it is not published
    training: TrainingRecord = field(default_factory=TrainingRecord)  # What its checkpoint records of the training
    padding: PaddingCut = None  # What is cut off from the end of sequences in data files before the model sees them
    # The target of the same model that is called with the steps alone; None if it was read in one way only
    without_lengths: Target | None = None

    @property
    def steps(self) -> StepInput:
        """What a step is: values of features, or a token id."""
        return self.subject.steps

    @abstractmethod
    def build(self, name: str, opset: int, *, origins: bool = False) -> onnx.ModelProto:
        """The ONNX graph, for a model of this name.

        With `origins`, the metadata of the nodes say from which line of code they come.
        """

    @abstractmethod
    def may_take_nan(self, batch: PaddedBatch) -> bool:
        """Whether the model seems to handle missing values; the steps of `batch` are values, not tokens."""

    def reference(self, batch: PaddedBatch) -> BatchLogits:
        """The logits `[rows, classes]` or `[rows, width, classes]` of the model, with which its graph is compared."""
        return self.subject.answer(batch).logits

    def exact(self, batch: PaddedBatch) -> BatchLogits | None:
        """The logits of the model, computed in float64 and rounded to float32; None if it does not run in float64."""
        answer = self.subject.answer_in_float64(batch)
        return None if answer is None else answer.logits

    @property
    def unmended(self) -> Target:
        """The target with which a mend begins: `without_lengths`, since a mend adds its own masks, or else this one."""
        return self.without_lengths or self

    def origin(self) -> dict[str, str | int | float | None]:
        """Where the model comes from: entries of the field `made` of the manifest."""
        return {"target": Path(self.text).name}

    @property
    def recorded(self) -> dict[str, Any]:
        """What its checkpoint records of the training, for the field `made` of the manifest."""
        return self.training.model_dump(include={"temperature", "trained"}, exclude_none=True)

    @property
    def check_command(self) -> str:
        """The command or the Python function that checks the target, for messages."""
        return "lengthwise_export.check" if self.is_object else f"lengthwise check {self.text}"

    def describe(self, **fields: Any) -> Manifest:
        """A manifest of the model; `fields` are further fields, or other values for those of the target."""
        own_fields: dict[str, Any] = {"name": "model", "version": 1, "input": self.steps, "labels": self.labels}
        own_fields |= {"task": "per-step" if self.per_step else "single-label", "graph": self.names}
        return Manifest(**own_fields | fields)


@dataclass(frozen=True, kw_only=True)
class TorchTarget(Target):
    """A model that runs in torch: it is checked and exported with the same signature and the same output."""

    traced: ClassVar[bool] = True

    subject: TorchSubject
    checkpoint: Path | None = None

    def build(self, name: str, opset: int, *, origins: bool = False) -> onnx.ModelProto:
        """The graph, traced from torch, for a model of this name; with `origins`, its nodes have the lines of code."""
        from lengthwise_export.tracing import graph  # torch's exporter, which a check does without

        proto = graph.build(
            self.subject.module,
            self.steps,
            name=name,
            labels=self.labels,
            signature=self.subject.signature,
            select_output=self.subject.select_output,
            opset=opset,
        )
        return proto if origins else graph.without_exporter_metadata(proto)

    def may_take_nan(self, batch: PaddedBatch) -> bool:
        """Whether the answers to a batch with NaN at the first step of each row are finite."""
        steps = batch.steps.copy()
        steps[:, 0] = np.nan
        with suppress(RunError):
            return is_finite(self.subject.answer(replace(batch, steps=steps)), batch)
        return False


@dataclass(frozen=True, kw_only=True)
class SpecTarget(TorchTarget):
    """A model of the built-in architecture, which a spec describes."""

    spec: Spec

    def origin(self) -> dict[str, str | int | float | None]:
        """The architecture, the checkpoint of the weights, and what that records of the training."""
        if self.checkpoint is None:
            return {"architecture": "built-in", "weights": UNTRAINED}
        return {"architecture": "built-in", "checkpoint": digest(self.checkpoint)} | self.recorded


@dataclass(frozen=True, kw_only=True)
class ModuleTarget(TorchTarget):
    """A user's torch module."""

    def origin(self) -> dict[str, str | int | float | None]:
        """Where the module and its weights come from."""
        if self.checkpoint is not None:
            return super().origin() | {"checkpoint": digest(self.checkpoint)}
        return super().origin() | ({} if self.is_object else {"weights": "the factory's own"})


@dataclass(frozen=True, kw_only=True)
class GraphTarget(Target):
    """A graph that was made elsewhere. An export does not rewrite it."""

    graph: onnx.ModelProto
    states: CarriedStates | None = None  # What it carries to the next steps; None if it takes and gives no states

    def build(self, name: str, opset: int, *, origins: bool = False) -> onnx.ModelProto:
        """The graph as it is, whatever the name and the opset are."""
        return self.graph

    def origin(self) -> dict[str, str | int | float | None]:
        """The target, and what the graph's metadata say of how it was made."""
        from lengthwise_export.onnx_graphs.protos import MADE, metadata_of

        return super().origin() | (metadata_of(self.graph, MADE) or {}) | self.recorded

    def may_take_nan(self, batch: PaddedBatch) -> bool:
        """Whether the graph has an IsNaN node."""
        from lengthwise_export.onnx_graphs.protos import contains_isnan  # a torch module needs no onnx

        return contains_isnan(self.graph)


@dataclass(frozen=True, kw_only=True)
class DirectoryTarget(GraphTarget):
    """A model directory, which is published already."""


def one_torch_thread() -> AbstractContextManager[None]:
    """Makes torch, if it is imported, compute in one thread during the block, so that the order of sums is fixed."""
    return torch_threads(1) if "torch" in sys.modules else nullcontext()


LARGE: Final = 10_000_000
"""A module with more weights than this is checked in the caller's threads: in one it would take minutes."""


def threads_of_check(subject: Subject) -> AbstractContextManager[None]:
    """The context in which a model is checked: `one_torch_thread`, or nothing for a large module.

    Then the order of sums depends on the number of torch's threads.
    """
    module = getattr(subject, "module", None)
    weights = 0 if module is None else sum(weight.numel() for weight in module.parameters())
    return nullcontext() if weights > LARGE else one_torch_thread()


# Options that several kinds of targets take
_STEP: Final = frozenset({"features", "vocabulary", "classes", "labels", "min_length"})
_AXES: Final = frozenset({"time_first", "channels_first", "second"})
_BESIDE: Final = frozenset({"static", "static_names", "static_categories"})
_KINDS: Final[dict[TargetKind, tuple[str, frozenset[str]]]] = {
    "spec": ("spec of the built-in architecture", _STEP | {"checkpoint"}),
    "checkpoint": ("checkpoint of the built-in architecture", _STEP),
    "module": ("torch module", _STEP | _AXES | _BESIDE | {"checkpoint", "output", "missing", "width", "fit"}),
    "keras": ("Keras model", _STEP | _BESIDE | {"output", "missing"}),
    "onnx": ("ONNX file", _STEP | _AXES | _BESIDE | {"values", "lengths", "mask", "output", "missing"}),
    "directory": ("model directory", _STEP),
}
"""For each kind of target, its name and the options that apply to it."""


def require_applicable(text: str, kind: TargetKind, options: TargetOptions) -> None:
    """Makes sure that every option that is set applies to the kind of target, and that steps are of one kind.

    Raises:
        ConfigurationError: An option does not apply, or both `features` and `vocabulary` are set.
    """
    title, applicable = _KINDS[kind]
    for name in TargetOptions.model_fields:
        if getattr(options, name) not in (None, False) and name not in applicable:
            in_spec = name == "missing" and kind in ("spec", "checkpoint")
            hint = "; say it as `missing` in [input] of the spec, and train" if in_spec else ""
            raise ConfigurationError(f"--{name.replace('_', '-')} does not apply to {text} ({title}){hint}")
    if (options.width is None) != (options.fit is None):
        raise ConfigurationError("--width and --fit belong together: --width 96 --fit pad, or --fit resample")
    if options.features is not None and options.vocabulary is not None:
        raise ConfigurationError("--features and --vocabulary: a step is either numbers or a token id, not both")


def check_options_agree(text: str, options: TargetOptions, steps: StepInput, labels: Sequence[str]) -> None:
    """Makes sure that no option contradicts the target, which has these steps and these labels.

    Raises:
        ConfigurationError: An option does; the message names it.
    """
    for flag, value, value_of_target in (
        ("features", options.features, steps.features),
        ("vocabulary", options.vocabulary, steps.vocabulary),
        ("classes", options.classes, len(labels)),
        ("labels", options.labels, tuple(labels)),
    ):
        if value is not None and value != value_of_target:
            raise ConfigurationError(f"--{flag} {value} contradicts {text}, which has {value_of_target}")


def labels_of(text: str, options: TargetOptions, classes: int) -> tuple[str, ...]:
    """The names of the classes from the option `labels`; without it `"0"`, `"1"`, ...

    Raises:
        ConfigurationError: An option gives another number of classes than the model has, or a label is empty, or two
            are equal.
    """
    labels = tuple(options.labels or ())
    empty = [index for index, label in enumerate(labels) if not label.strip()]
    names = ", ".join(map(repr, labels))
    if empty:
        raise ConfigurationError(
            f"--labels: label {empty[0]} of {names} is empty; give each class a name, with no comma at the end"
        )
    if options.classes not in (None, classes):
        raise ConfigurationError(f"--classes gives {options.classes} classes, but {text} has {classes}")
    if options.labels is not None and len(labels) != classes:
        raise ConfigurationError(
            f"--labels gives {counted(len(labels), 'class', 'classes')}, {names}, but {text} has {classes}. A label "
            "that has a comma stands in double quotes"
        )
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigurationError(f"--labels names {', '.join(map(repr, twice))} more than once")
    return labels or tuple(map(str, range(classes)))
