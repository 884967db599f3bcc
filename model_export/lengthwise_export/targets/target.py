"""The result of loading a TARGET: a model to check, a function that builds its graph, and a description of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.recording import Subject
from lengthwise_export.options import TargetOptions

TargetKind = Literal["spec", "checkpoint", "module", "onnx", "directory"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model, whatever it was made with.

    Attributes:
        text: The TARGET as given by the user.
        kind: The kind of target.
        steps: The kind of a step.
        subject: The model, to be checked.
        labels: Its classes, by the names that were given or by number.
        per_step: Whether it answers each step.
        names: What its graph's inputs and outputs are called.
        build: Makes its graph; told the model's name and the opset.
        framework: Whether it was made in a framework that its graph can be held against.
        checkpoint: The weights that were given for it.
        manifest: That of a model directory.
        spec: That of the built-in architecture.
        notices: What its reader should tell.
        is_object: Whether the caller gave an object: its weights are those that are meant.
    """

    text: str
    kind: TargetKind
    steps: StepInput
    subject: Subject
    labels: tuple[str, ...]
    per_step: bool
    names: GraphNames
    build: Callable[[str, int], onnx.ModelProto]
    framework: bool
    checkpoint: Path | None = None
    manifest: Manifest | None = None
    spec: Spec | None = None
    notices: tuple[str, ...] = ()
    is_object: bool = False


def check_options_agree(text: str, options: TargetOptions, steps: StepInput, labels: Sequence[str]) -> None:
    """Compares what was said with what the target says itself."""
    for flag, said, own in (
        ("features", options.features, steps.features),
        ("vocabulary", options.vocabulary, steps.vocabulary),
        ("classes", options.classes, len(labels)),
        ("labels", options.labels, tuple(labels)),
    ):
        if said is not None and said != own:
            raise ConfigurationError(f"--{flag} {said} contradicts {text}, which says {own}")


def labels_of(text: str, options: TargetOptions, classes: int) -> tuple[str, ...]:
    """The names that were given, or numbers.

    Raises:
        ConfigurationError: They are not as many as the classes, or two are the same.
    """
    for flag, said in (("classes", options.classes), ("labels", options.labels and len(options.labels))):
        if said is not None and said != classes:
            raise ConfigurationError(f"--{flag} names {said} classes, {text} answers {classes}")
    twice = sorted({label for label in options.labels or () if (options.labels or ()).count(label) > 1})
    if twice:
        raise ConfigurationError(f"--labels names {', '.join(map(repr, twice))} more than once")
    return options.labels or tuple(map(str, range(classes)))
