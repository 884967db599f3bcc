"""Loads a TARGET: a spec, a checkpoint, a torch module, a Keras model, an ONNX file or a model directory.

Options describe what cannot be inferred from it. An option that contradicts it is an error that names both.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard

from lengthwise.exporter_api.contract import MANIFEST_FILE, is_address
from lengthwise.repository.source import model_directory
from lengthwise_export.architecture import foreign_files, trained
from lengthwise_export.architecture.spec import Spec, tables_of
from lengthwise_export.errors import ConfigurationError
from lengthwise_export.layouts import StepLayout
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets import stock_folder
from lengthwise_export.targets.stock_folder import AnyOptions
from lengthwise_export.targets.target import ModuleTarget, Target, TargetKind, one_torch_thread, require_applicable

if TYPE_CHECKING:
    import onnx
    from sklearn.pipeline import Pipeline
    from torch import nn

TargetSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | nn.Module | Pipeline"
"""A target as the caller passes it: a text, or an object."""

FORMS = (
    "a spec of the built-in architecture (*.toml), what `lengthwise train` wrote (*.safetensors, or its folder), "
    "package.module:factory or file.py:factory of a torch module or Keras model, a Keras file (*.keras, *.h5), an ONNX "
    "file (*.onnx) or a folder that optimum wrote, or for check a model directory or its address"
)


def read(
    source: TargetSource, options: TargetOptions, *, blind: bool = False, layout: StepLayout | None = None
) -> Target:
    """Reads a TARGET: a text, a torch module or an ONNX graph.

    A module is not copied: it is put into evaluation mode, and the weights of `options.checkpoint` are loaded into it.

    Args:
        source: The target.
        options: Its description by the user.
        blind: Whether the model may take the steps alone, because it is to be mended. If it takes lengths or a mask, it
            gets them all the same, unless `options.second` is `none`.
        layout: The layout of the steps that the user states for a check; None if there is none.

    Raises:
        ConfigurationError: The target cannot be loaded, or an option contradicts it.
        UncheckableError: It takes neither lengths nor a mask, and is not `blind`.
    """  # noqa: DOC502 - what it calls raises them
    text = name_of(source)
    if is_address(source):
        text = str(model_directory(text))
    is_object = not isinstance(source, str | os.PathLike)
    of_object: TargetKind = "onnx" if _is_graph(source) else "module"
    kind = of_object if is_object else _kind(text)
    if options.checkpoint is not None:
        options = options.model_copy(update={"checkpoint": trained.checkpoint_file(Path(options.checkpoint))})
    require_applicable(text, kind, options)
    target: Target
    if kind in ("onnx", "directory"):
        from lengthwise_export.targets import graph_targets  # brings onnx along, which a torch module does without

        if kind == "onnx":
            target = graph_targets.read_model(text, source if _is_graph(source) else None, options, blind, layout)
        else:
            target = graph_targets.read_directory(text, options)
    elif kind == "keras":
        from lengthwise_export.keras_models import keras_targets

        target = keras_targets.read_file(text, options)
    else:
        from lengthwise_export.targets import torch_targets  # brings torch along, which a graph does without

        with one_torch_thread():
            if kind == "module":
                module: Any = source if is_object else torch_targets.module_of(text)
                read_module = partial(torch_targets.read_module, text, options=options, blind=blind, layout=layout)
                target = read_module(module)
                if isinstance(target, ModuleTarget) and options.checkpoint is not None and not is_object:
                    torch_targets.require_all_is_saved(text, target, read_module)
            elif kind == "spec":
                target = torch_targets.read_spec(text, options)
            else:
                target = torch_targets.read_checkpoint(text, options)
    return _asked_from(dataclasses.replace(target, is_object=is_object), options.min_length or 1)


def _asked_from(target: Target, min_length: int) -> Target:
    """A target that is asked for sequences of at least so many steps, however it is called."""
    without_lengths = target.without_lengths and _asked_from(target.without_lengths, min_length)
    return dataclasses.replace(target, min_length=max(target.min_length, min_length), without_lengths=without_lengths)


def described(source: Any, options: AnyOptions) -> tuple[Any, AnyOptions]:
    """The graph of a pipeline of scikit-learn, of what `train` made of one, or of a folder of optimum.

    The options come with what these say. Another source is returned unchanged.

    Raises:
        ConfigurationError: The pipeline has a step that cannot be exported, or the folder no classifier.
        VerificationError: The graph of the pipeline answers otherwise than the pipeline.
    """  # noqa: DOC502 - what it calls raises them
    if _is_pipeline(source):
        from lengthwise_export.summaries import pipeline

        return pipeline.described(source, options)
    if (run := _run_of_summaries(source, options)) is not None:
        from lengthwise_export.summaries import trained_pipeline

        return trained_pipeline.described(*run, options)
    return stock_folder.described(source, options)


def _run_of_summaries(source: Any, options: TargetOptions) -> tuple[Spec, Path] | None:
    """The spec and the checkpoint, if a target names what `train` wrote with `kind = "summaries"`; else None."""
    if not isinstance(source, str | os.PathLike) or is_address(source):
        return None
    kind = _kind(os.fspath(source))
    weights = {"spec": options.checkpoint, "checkpoint": source}.get(kind)
    if weights is None:
        return None
    weights = trained.checkpoint_file(Path(weights))
    recorded = trained.read_record(weights).spec
    if recorded is None or recorded.model.kind != "summaries":
        return None
    return (trained.with_chosen_keys(Spec.read(Path(source)), weights) if kind == "spec" else recorded), weights


def name_of(source: object) -> str:
    """The name of a target in messages: its text, the name of a graph, or the class of a module.

    Raises:
        ConfigurationError: It is not a target; the message says what a target is.
    """
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if _is_graph(source):
        return source.graph.name or "the graph"
    if _is_pipeline(source):
        return type(source).__name__
    torch = sys.modules.get("torch")  # without torch there are no modules
    if torch is not None and isinstance(source, torch.nn.Module):
        return type(source).__name__
    if torch is not None and isinstance(source, type) and issubclass(source, torch.nn.Module):
        raise ConfigurationError(
            f"{source.__name__} is a class, and not a module: give an instance of it, such as {source.__name__}()"
        )
    raise ConfigurationError(
        f"{source!r:.80} is not a target: give a torch.nn.Module, an onnx.ModelProto, a Pipeline of scikit-learn, or "
        f"the text of {FORMS}"
    )


def _is_pipeline(source: object) -> bool:
    """Whether an object is a pipeline of scikit-learn, which is not imported for that."""
    sklearn = sys.modules.get("sklearn.pipeline")
    return sklearn is not None and isinstance(source, sklearn.Pipeline)


def begins_with(source: Any, step: str) -> bool:
    """Whether a target is a pipeline of scikit-learn whose first step has a class of this name."""
    return _is_pipeline(source) and type(source.steps[0][1]).__name__ == step


def _is_graph(source: object) -> TypeGuard[onnx.ModelProto]:
    """Whether an object is a graph. Onnx is not imported for that: without it there are no graphs."""
    onnx = sys.modules.get("onnx")
    return onnx is not None and isinstance(source, onnx.ModelProto)


_KIND_OF_SUFFIX: Final[dict[str, TargetKind]] = {
    ".safetensors": "checkpoint",
    ".toml": "spec",
    ".onnx": "onnx",
    **dict.fromkeys((".keras", ".h5", ".hdf5"), "keras"),
}


_KERAS_FILES: Final = (b"PK\x03\x04", b"\x89HDF\r\n\x1a\n")  # how they begin: an archive (zip), or HDF5


def _kind(text: str) -> TargetKind:
    """The kind of a target that a text names, by its suffix or form.

    What a look can refuse is refused here, before torch is imported, which takes seconds.

    Raises:
        ConfigurationError: The text names no target, or a file that is not there, or is none of its kind; the message
            says what a target is.
    """
    path = Path(text)
    if text and path.is_dir():
        is_run = any((path / name).is_file() for name in (trained.WEIGHTS_FILE, trained.STATE_FILE))
        return "checkpoint" if is_run and not (path / MANIFEST_FILE).exists() else "directory"
    # By the suffix of a file; but `nets.py:models.keras` names a factory
    kind = _KIND_OF_SUFFIX.get(path.suffix)
    if kind is not None and (kind != "keras" or path.is_file() or ":" not in text):
        _require_file(path, kind)
        return kind
    if ":" in text:
        where = Path(text.partition(":")[0])
        if where.suffix == ".py" and not where.is_file():
            raise ConfigurationError(f"{text}: there is no file {where}")
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


def _require_file(path: Path, kind: TargetKind) -> None:
    """Makes sure that a file is there, and is of the kind that its suffix says as far as a look at it shows.

    Raises:
        ConfigurationError: It is not.
    """
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}")
    if kind == "spec":
        tables_of(path)
    if kind == "keras":
        with path.open("rb") as file:
            if not file.read(8).startswith(_KERAS_FILES):
                raise ConfigurationError(f"{path}: it is neither a .keras file nor an HDF5 file")
