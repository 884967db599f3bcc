"""Folders that Hugging Face's optimum writes: an ONNX file, and a `config.json` that says what options would say.

`described` gives the ONNX file of such a folder, and the options with what its configuration says:

| option | in `config.json` |
|---|---|
| `labels` | `id2label` |
| `vocabulary` | `vocab_size` |
| `multi_label` | `problem_type` is `multi_label_classification` |
| `max_length` | `max_position_embeddings`, of which RoBERTa and its kin use `pad_token_id` + 1 for padding: what runs |

An option that the user sets stays as it is. What is no classifier of sequences or tokens is refused.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from lengthwise_export.errors import ConfigurationError, counted
from lengthwise_export.options import TargetOptions
from lengthwise_export.targets.target import MANIFEST_FILE

CONFIG_FILE: Final = "config.json"
_GRAPHS: Final = ("model.onnx", "onnx/model.onnx")  # as optimum names it, and as repositories of the hub have it
_MOST_BYTES: Final = 2**24  # of a configuration
_MOST_TRIED: Final = 1024  # steps, as `check` and `export` try by default
_CLASSIFIERS: Final = ("ForSequenceClassification", "ForTokenClassification")

AnyOptions = TypeVar("AnyOptions", bound=TargetOptions)


class _Config(BaseModel):
    """What is read of a `config.json`; the names are those of transformers."""

    model_type: str
    architectures: tuple[str, ...] | None = None
    problem_type: str | None = None
    id2label: dict[int, str] | None = None
    vocab_size: int | None = Field(default=None, ge=1)
    max_position_embeddings: int | None = Field(default=None, ge=1)
    n_positions: int | None = Field(default=None, ge=1)  # its name in GPT-2
    pad_token_id: int | None = None

    def labels(self, where: Path) -> tuple[str, ...] | None:
        """The names of the classes in the order of the outputs; None if the configuration has none.

        Raises:
            ConfigurationError: It is no classifier, or its classes are not numbered from 0.
        """
        for architecture in self.architectures or ():
            if not architecture.endswith(_CLASSIFIERS):
                raise ConfigurationError(
                    f"{where}: {architecture} is no classifier: export a model for sequence or token classification "
                    "(optimum-cli export onnx --task text-classification, or token-classification)"
                )
        labels = self.id2label
        if self.problem_type == "regression" or (labels is not None and len(labels) == 1):
            raise ConfigurationError(f"{where}: the model gives one number, as for a regression; classes are served")
        if labels is None:
            return None
        if sorted(labels) != [*range(len(labels))]:
            first = f"{len(labels)} ids, {', '.join(map(str, sorted(labels)[:5]))} first"
            raise ConfigurationError(f"{where}: id2label has {first}: they must count from 0")
        names = tuple(labels[number] for number in range(len(labels)))
        if len({*names}) < len(names) or not all(map(str.strip, names)):
            raise ConfigurationError(f"{where}: id2label has an empty name, or the same name for two classes")
        return names


def described(source: object, options: AnyOptions) -> tuple[Any, AnyOptions]:
    """The ONNX file of a folder of optimum, and the options with what its configuration says.

    An ONNX file of such a folder has the same options. Another source is returned unchanged, as is a file beside a
    configuration that is none of a classifier of transformers.

    Raises:
        ConfigurationError: The folder has no ONNX file, or several; or its model is no classifier.
    """
    if not isinstance(source, str | os.PathLike):
        return source, options
    path, is_file = Path(source), os.path.isfile(source) and os.fspath(source).endswith(".onnx")
    folder = (path.parent.parent if path.parent.name == "onnx" else path.parent) if is_file else path
    is_folder = is_file or os.path.isdir(source)
    if not is_folder or not os.path.isfile(folder / CONFIG_FILE) or os.path.exists(folder / MANIFEST_FILE):
        return source, options
    try:
        config, graph = _config(folder / CONFIG_FILE), path if is_file else _graph_file(folder)
        labels = config.labels(folder / CONFIG_FILE)
    except ConfigurationError:
        if is_file:
            return source, options
        raise
    open_fields = type(options).model_fields.keys() - options.model_fields_set
    known = {
        "labels": labels,
        "vocabulary": config.vocab_size,
        "multi_label": config.problem_type == "multi_label_classification",
        "max_length": _longest(graph, config) if "max_length" in open_fields else None,
    }
    update = {name: value for name, value in known.items() if name in open_fields and value is not None}
    return str(graph), options.model_copy(update=update)


def _config(path: Path) -> _Config:
    """Reads a configuration.

    Raises:
        ConfigurationError: It is too large, no JSON, or none of transformers.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigurationError(f"{path} has more than {_MOST_BYTES} bytes, so it is no configuration of transformers")
    try:
        return _Config.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{path} is no configuration of transformers, as optimum writes it beside a graph: {field and field + ': '}"
            f"{first['msg']}"
        ) from None


def _graph_file(folder: Path) -> Path:
    """The ONNX file of the folder: the one with optimum's name for it, or the only one.

    Raises:
        ConfigurationError: There is none, or there are several of other names.
    """
    files = [path for name in _GRAPHS if (path := folder / name).is_file()] or sorted(folder.glob("**/*.onnx"))
    if not files:
        raise ConfigurationError(
            f"{folder} has {CONFIG_FILE} and no ONNX file: optimum-cli export onnx --model {folder} OUT writes one"
        )
    if files[0].name != Path(_GRAPHS[0]).name and len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        raise ConfigurationError(f"{folder} has {counted(len(files), 'ONNX file')}, {names}: name one of them")
    return files[0]


def _longest(graph: Path, config: _Config) -> int | None:
    """The most steps that the model accepts, if they are fewer than what is tried by default; None if not known.

    The configuration says how many positions there are; one sequence of other ids than the padding's is run.
    """
    import onnxruntime  # the check of a torch module needs none

    positions = config.max_position_embeddings or config.n_positions or _MOST_TRIED
    lengths = [steps for steps in (positions, positions - (config.pad_token_id or 0) - 1) if 0 < steps < _MOST_TRIED]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
    except Exception:  # they have no common base; the error comes again where the graph is read
        return None
    numbers = {
        "attention_mask": 1,
        "input_ids": 0 if config.pad_token_id else 1,
    }  # others, as token_type_ids, are zeros
    inputs = {value.name: np.int32 if "int32" in value.type else np.int64 for value in session.get_inputs()}
    for steps in lengths:
        fed = {name: np.full((1, steps), numbers.get(name, 0), element) for name, element in inputs.items()}
        with suppress(Exception):  # more positions than there are
            session.run(None, fed)
            return steps
    return None
