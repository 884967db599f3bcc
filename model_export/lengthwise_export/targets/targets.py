"""Loads a TARGET: a spec, a checkpoint, a torch module, a Keras model, an ONNX file or a model directory.

Options describe what cannot be inferred from it. An option that contradicts it is an error that names both.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import onnx

from lengthwise.errors import ConfigurationError
from lengthwise.runtime.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from lengthwise_export.architecture import foreign_files, trained
from lengthwise_export.checking.trace_onnx import OnnxSubject
from lengthwise_export.onnx_graphs.external_graph import ExternalGraph, read_graph
from lengthwise_export.onnx_graphs.protos import labels_in
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import Target, TargetKind, check_options_agree, labels_of, require_applicable

if TYPE_CHECKING:
    from torch import nn

TargetSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | nn.Module"
"""A target as the caller passes it: a text, or an object."""

FORMS = (
    "a spec of the built-in architecture (*.toml), what `lengthwise train` wrote (*.safetensors, or its folder), "
    "package.module:factory or file.py:factory of a torch module or Keras model, a Keras file (*.keras, *.h5), an ONNX "
    "file (*.onnx), or for check a model directory"
)


def may_be_torch(source: TargetSource) -> bool:
    """Whether reading a target may run a torch module, and not only onnxruntime."""
    if isinstance(source, onnx.ModelProto):
        return False
    return not isinstance(source, (str, os.PathLike)) or not (
        os.fspath(source).endswith(".onnx") or Path(source).is_dir()
    )


def read(source: TargetSource, options: TargetOptions, *, blind: bool = False) -> Target:
    """Reads a TARGET: a text, a torch module or an ONNX graph.

    A module is not copied: it is put into evaluation mode, and the weights of `options.checkpoint` are loaded into it.
    A `blind` model may take the steps alone, because it is to be mended; one that takes lengths or a mask gets them all
    the same, unless `options.second` is `none`. A ConfigurationError if it cannot be loaded or an option contradicts
    it, an UncheckableError if it takes neither lengths nor a mask.
    """
    text = named(source)
    of_object: TargetKind = "onnx" if isinstance(source, onnx.ModelProto) else "module"
    kind = _kind(text) if isinstance(source, str | os.PathLike) else of_object
    if options.checkpoint is not None:
        weights = trained.checkpoint_file(Path(options.checkpoint))
        options = options.model_copy(update={"checkpoint": weights})
    require_applicable(text, kind, options)
    if kind == "onnx":
        return _of_proto(text, source, options, blind=blind)
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
    if isinstance(source, str | os.PathLike):
        return torch_targets.of_module(text, torch_targets.module_of(text), options, blind=blind)
    assert not isinstance(source, onnx.ModelProto)
    return dataclasses.replace(torch_targets.of_module(text, source, options, blind=blind), is_object=True)


def named(source: object) -> str:
    """The name of a target in messages.

    Raises:
        ConfigurationError: It is not a target; the message says what is one.
    """
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, onnx.ModelProto):
        return source.graph.name or "the graph"
    torch = sys.modules.get("torch")  # who has a module has imported it
    if torch is not None and isinstance(source, torch.nn.Module):
        return type(source).__name__
    if torch is not None and isinstance(source, type) and issubclass(source, torch.nn.Module):
        raise ConfigurationError(
            f"{source.__name__} is a class, and not a module: give an instance of it, such as {source.__name__}()"
        )
    raise ConfigurationError(
        f"{source!r:.80} is not a target: give a torch.nn.Module, an onnx.ModelProto, or the text of {FORMS}"
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


def _of_proto(text: str, source: TargetSource, options: TargetOptions, *, blind: bool) -> Target:
    """The target of a graph, or of the file of one.

    Raises:
        ConfigurationError: The file cannot be read as ONNX, or holds no graph.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
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
    return _of_graph(text, "onnx", read, labels, is_object=isinstance(source, onnx.ModelProto))


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
