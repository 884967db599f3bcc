"""Loads a TARGET: a spec, a checkpoint, a torch module, a Keras model, an ONNX file or a model directory.

Options describe what cannot be inferred from it. An option that contradicts it is an error that names both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, GraphNames, Manifest, StepInput
from lengthwise.wrong_values import counted
from lengthwise_export.architecture import foreign_files, trained
from lengthwise_export.architecture.spec import Spec
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph, read_graph
from lengthwise_export.onnx_graphs.protos import labels_in
from lengthwise_export.options import TargetOptions

if TYPE_CHECKING:
    from torch import nn

Given: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | nn.Module"
"""A target as the caller passes it: a text, or an object."""

FORMS = (
    "a spec of the built-in architecture (*.toml), what `lengthwise train` wrote (*.safetensors, or its folder), "
    "package.module:factory or file.py:factory of a torch module or Keras model, a Keras file (*.keras, *.h5), an ONNX "
    "file (*.onnx), or for check a model directory"
)

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
    made: Mapping[str, str] = field(default_factory=dict)

    def described(self, **fields: Any) -> Manifest:
        """A manifest of the model, with these other fields."""
        own: dict[str, Any] = {"name": "model", "version": 1, "input": self.steps, "labels": self.labels}
        own |= {"task": "per-step" if self.per_step else "single-label", "graph": self.names}
        return Manifest(**own | fields)


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
    """Makes sure that every option that is set applies to the kind of target."""
    said, apply = _KINDS[kind]
    for name in TargetOptions.model_fields:
        if getattr(options, name) not in (None, False) and name not in apply:
            raise ConfigurationError(f"--{name.replace('_', '-')} does not apply to {text} ({said})")


def check_options_agree(text: str, options: TargetOptions, steps: StepInput, labels: Sequence[str]) -> None:
    """Checks that no option contradicts the target."""
    for flag, said, own in (
        ("features", options.features, steps.features),
        ("vocabulary", options.vocabulary, steps.vocabulary),
        ("classes", options.classes, len(labels)),
        ("labels", options.labels, tuple(labels)),
    ):
        if said is not None and said != own:
            raise ConfigurationError(f"--{flag} {said} contradicts {text}, which has {own}")


def labels_of(text: str, options: TargetOptions, classes: int) -> tuple[str, ...]:
    """The class names from the option `labels`; numbers without it."""
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


def may_be_torch(given: Given) -> bool:
    """Whether reading a target may run a torch module, and not only onnxruntime."""
    if isinstance(given, onnx.ModelProto):
        return False
    return not isinstance(given, (str, os.PathLike)) or not (os.fspath(given).endswith(".onnx") or Path(given).is_dir())


def read(given: Given, options: TargetOptions, *, blind: bool = False) -> Target:
    """Reads a TARGET: a text, a torch module or an ONNX graph.

    A module is not copied: it is put into evaluation mode, and the weights of `options.checkpoint` are loaded into it.
    A `blind` model may take the steps alone, because it is to be mended; one that takes lengths or a mask gets them all
    the same, unless `options.second` is `none`. A ConfigurationError if it cannot be loaded or an option contradicts
    it, an UncheckableError if it takes neither lengths nor a mask.
    """
    text = named(given)
    of_object: TargetKind = "onnx" if isinstance(given, onnx.ModelProto) else "module"
    kind = _kind(text) if isinstance(given, str | os.PathLike) else of_object
    if options.checkpoint is not None:
        weights = trained.checkpoint_file(Path(options.checkpoint))
        options = options.model_copy(update={"checkpoint": weights})
    require_applicable(text, kind, options)
    if kind == "onnx":
        return _of_proto(text, given, options, blind=blind)
    if kind == "directory":
        return _read_directory(text, options)
    if kind == "keras":
        from lengthwise_export.keras_models import keras_targets

        return keras_targets.read_file(text, options)
    from lengthwise_export.targets import torch_targets  # brings torch along, which a graph does without

    if kind == "checkpoint":
        return torch_targets.read_checkpoint(text, options)
    if kind == "spec":
        return torch_targets.read_spec(text, options)
    if isinstance(given, str | os.PathLike):
        return torch_targets.of_module(text, torch_targets.module_of(text), options, blind=blind)
    assert not isinstance(given, onnx.ModelProto)
    return replace(torch_targets.of_module(text, given, options, blind=blind), is_object=True)


def named(given: object) -> str:
    """The name of a target in messages."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if isinstance(given, onnx.ModelProto):
        return given.graph.name or "the graph"
    torch = sys.modules.get("torch")  # who has a module has imported it
    if torch is not None and isinstance(given, torch.nn.Module):
        return type(given).__name__
    if torch is not None and isinstance(given, type) and issubclass(given, torch.nn.Module):
        raise ConfigurationError(
            f"{given.__name__} is a class, and not a module: give an instance of it, such as {given.__name__}()"
        )
    raise ConfigurationError(
        f"{given!r:.80} is not a target: give a torch.nn.Module, an onnx.ModelProto, or the text of {FORMS}"
    )


_KIND_OF_SUFFIX: Final[dict[str, TargetKind]] = {
    ".safetensors": "checkpoint",
    ".toml": "spec",
    ".onnx": "onnx",
    **dict.fromkeys((".keras", ".h5", ".hdf5"), "keras"),
}


def _kind(text: str) -> TargetKind:
    path = Path(text)
    if path.is_dir():
        held = [name for name in (trained.WEIGHTS_FILE, trained.STATE_FILE) if (path / name).is_file()]
        return "checkpoint" if held and not (path / MANIFEST_FILE).exists() else "directory"
    kind = _KIND_OF_SUFFIX.get(path.suffix)
    if kind is not None and (kind != "keras" or path.is_file() or ":" not in text):
        if not path.is_file():
            raise ConfigurationError(f"there is no file {text}")
        return kind
    if ":" in text:
        return "module"
    why = f"{text} is not a target: a target is {FORMS}"
    if path.suffix == ".py":
        why = f"{text} is not a target: also name the function that returns the module, as in {text}:FACTORY"
    elif path.suffix in foreign_files.SUFFIXES and path.is_file():
        why = foreign_files.why_refused(path) or (
            f"{text} holds weights only: also name the function that returns the module, as in "
            f"package.module:factory --checkpoint {text}"
        )
    raise ConfigurationError(why)


def _of_proto(text: str, given: Given, options: TargetOptions, *, blind: bool) -> Target:
    """The target of a graph, or of the file of one."""
    if isinstance(given, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(given)
    else:
        try:
            proto = onnx.load(text)
        except Exception as error:  # protobuf's own kinds, and those of files beside the graph
            raise ConfigurationError(f"{text} cannot be read as ONNX: {error}") from error
    if not proto.graph.output:
        raise ConfigurationError(f"{text} holds no graph: it has no output")
    read = read_graph(proto, options, blind=blind)
    labels = labels_of(text, options, read.classes)
    own = labels_in(proto)
    if own is not None and len(own) == read.classes:
        check_options_agree(text, options, read.steps, own)
        labels = own
    return _of_graph(text, "onnx", read, labels, is_object=isinstance(given, onnx.ModelProto))


def _read_directory(text: str, options: TargetOptions) -> Target:
    directory = Path(text)
    if not (directory / MANIFEST_FILE).exists():
        inside = sorted(
            {str(file.parent) for depth in ("*", "*/*") for file in directory.glob(f"{depth}/{MANIFEST_FILE}")}
        )
        instead = f"; there is {', '.join(inside[:5])}" if inside else ""
        raise ConfigurationError(
            f"{text} is a folder with neither {MANIFEST_FILE} (a model directory) nor {trained.WEIGHTS_FILE} (what "
            f"`lengthwise train` wrote){instead}"
        )
    manifest = Manifest.read(directory)
    manifest.checked(directory)
    check_options_agree(text, options, manifest.input, manifest.labels)
    graph, per_step = onnx.load(directory / GRAPH_FILE), manifest.task == "per-step"
    read = ExternalGraph(graph, manifest.input, manifest.graph, manifest.classes, per_step=per_step)
    return _of_graph(text, "directory", read, manifest.labels, manifest=manifest)


def _of_graph(text: str, kind: TargetKind, read: ExternalGraph, labels: tuple[str, ...], **more: Any) -> Target:
    manifest: Manifest | None = more.get("manifest")
    return Target(
        text=text,
        kind=kind,
        steps=read.steps,
        subject=OnnxSubject(read, one_by_one=manifest is not None and manifest.max_batch_rows == 1),
        labels=labels,
        per_step=read.per_step,
        names=read.names,
        build=lambda name, opset: read.graph,
        framework=False,
        blind=read.blind,
        **more,
    )
