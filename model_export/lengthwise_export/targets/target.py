"""The result of loading a TARGET: a model to check, a function that builds its graph, and a description of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.wrong_values import counted
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.recording import Subject
from lengthwise_export.options import TargetOptions
from lengthwise_export.tracing.process_wide import torch_threads

ScoreKind = Literal["logits", "probabilities"]

TargetKind = Literal["spec", "checkpoint", "module", "keras", "onnx", "directory"]


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded target: a model from any framework."""

    text: str
    kind: TargetKind
    steps: StepInput
    subject: Subject
    labels: tuple[str, ...]
    per_step: bool
    names: GraphNames
    build: Callable[[str, int], onnx.ModelProto]
    framework: bool  # Whether it runs in torch, so that its graph can be compared with it
    checkpoint: Path | None = None
    manifest: Manifest | None = None  # The manifest, if the target is a model directory
    spec: Spec | None = None
    notices: tuple[str, ...] = ()
    is_object: bool = False  # Whether the caller passed an object, which has its weights already
    # Whether the model takes the steps alone. Then its graph lacks the input `names.lengths`, which a mend adds, and
    # `subject` runs a batch as if it had no padding.
    blind: bool = False
    # The same model as a blind target, if a mend is to begin with that; None to begin with this one
    alone: Target | None = None
    scores: ScoreKind | None = None  # What its output is, if the model says that
    # What the manifest is to say about where the model comes from
    provenance: Mapping[str, str] = field(default_factory=dict)

    def described(self, **fields: Any) -> Manifest:
        """A manifest of the model, with these other fields."""
        own: dict[str, Any] = {"name": "model", "version": 1, "input": self.steps, "labels": self.labels}
        own |= {"task": "per-step" if self.per_step else "single-label", "graph": self.names}
        return Manifest(**own | fields)


def one_torch_thread(needed: bool = True) -> AbstractContextManager[None]:
    """Makes torch compute in one thread while a target runs in it, so that the order of sums is fixed."""
    return torch_threads(1) if needed else nullcontext()


_STEP: Final = frozenset({"features", "vocabulary", "classes", "labels"})
_AXES: Final = frozenset({"time_first", "channels_first", "second"})
_KINDS: Final[dict[TargetKind, tuple[str, frozenset[str]]]] = {
    "spec": ("spec of the built-in architecture", _STEP | {"checkpoint"}),
    "checkpoint": ("checkpoint of the built-in architecture", _STEP),
    "module": ("torch module", _STEP | _AXES | {"checkpoint", "output", "missing"}),
    "keras": ("Keras model", _STEP | {"output", "missing"}),
    "onnx": ("ONNX file", _STEP | _AXES | {"values", "lengths", "mask", "output", "missing"}),
    "directory": ("model directory", _STEP),
}
"""For each kind of target, its name and the options that apply to it."""


def require_applicable(text: str, kind: TargetKind, options: TargetOptions) -> None:
    """Makes sure that every option that is set applies to the kind of target.

    Raises:
        ConfigurationError: One does not; the message names it.
    """
    said, apply = _KINDS[kind]
    for name in TargetOptions.model_fields:
        if getattr(options, name) not in (None, False) and name not in apply:
            in_spec = name == "missing" and kind in ("spec", "checkpoint")
            hint = "; say it as `missing` in [input] of the spec, and train" if in_spec else ""
            raise ConfigurationError(f"--{name.replace('_', '-')} does not apply to {text} ({said}){hint}")


def check_options_agree(text: str, options: TargetOptions, steps: StepInput, labels: Sequence[str]) -> None:
    """Checks that no option contradicts the target.

    Raises:
        ConfigurationError: One does; the message names it.
    """
    for flag, said, own in (
        ("features", options.features, steps.features),
        ("vocabulary", options.vocabulary, steps.vocabulary),
        ("classes", options.classes, len(labels)),
        ("labels", options.labels, tuple(labels)),
    ):
        if said is not None and said != own:
            raise ConfigurationError(f"--{flag} {said} contradicts {text}, which has {own}")


def labels_of(text: str, options: TargetOptions, classes: int) -> tuple[str, ...]:
    """The class names from the option `labels`; numbers without it.

    Raises:
        ConfigurationError: An option gives another number of classes than the model has, or a label is empty or is
            there twice.
    """
    labels = tuple(options.labels or ())
    empty = [place for place, label in enumerate(labels) if not label.strip()]
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
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigurationError(f"--labels names {', '.join(map(repr, twice))} more than once")
    return labels or tuple(map(str, range(classes)))
