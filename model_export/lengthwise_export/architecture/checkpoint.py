"""Reads and writes weights without running code: safetensors, or a `state_dict` loaded with `weights_only=True`.

Files are written under a temporary name and then renamed, so a reader never sees half a file. The *state* of a file
of `write` is the JSON dictionary in its header: what the weights were trained with, or how far a run is.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lengthwise.exporter_api.contract import files
from lengthwise_export.architecture import foreign_files
from lengthwise_export.errors import CheckpointError, first_of

# Where files of training libraries keep the weights, beside the state of the optimizer and other things
_KEYS: Final = ("state_dict", "model_state_dict", "model", "module", "net")
# What wrappers put before the names of the weights: an outer module, DataParallel, Lightning, or torch.compile
_WRAPPERS: Final = re.compile(r"((model|module|net|network|_orig_mod)\.)+")


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors of any shape and a JSON state into one `.safetensors` file, so that both belong together."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.replace(path, save(plain, metadata={"state": json.dumps(state)}))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a `.safetensors` file for the block, and yields it with its state.

    The state is empty for a file that `write` did not write.

    Raises:
        CheckpointError: The file cannot be read as safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            yield file, state if isinstance(state, dict) else {}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors by name, and the state, of a `.safetensors` file; CheckpointError if it cannot be read."""
    with _opened(path) as (file, state):
        return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118, it is no mapping


def state(path: Path) -> dict[str, Any]:
    """Reads what a file says about its training, as a dictionary; empty if it says nothing.

    Of a `.safetensors` file that `write` wrote, it is the state. Of a file of `torch.save`, it has the entry `labels`
    if the file has one beside its `state_dict`.
    """
    if path.suffix == ".safetensors":
        with _opened(path) as (_, stored_state):
            return stored_state
    content = _load_pickle(path)
    has_weights_inside = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    labels = content.get("labels") if has_weights_inside else None
    are_texts = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
    return {"labels": list(labels)} if are_texts and labels else {}


def weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights by name, from `.safetensors` or from a `state_dict` written by `torch.save`.

    Raises:
        CheckpointError: The file cannot be read without running code, or holds something other than weights.
    """
    if path.suffix == ".safetensors":
        return read(path)[0]
    content = _load_pickle(path)
    if isinstance(content, dict):
        content = next((content[key] for key in _KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path} holds no state_dict, neither directly nor under a key ({', '.join(map(repr, _KEYS))})"
        )
    return {str(name): value for name, value in content.items()}


def _load_pickle(path: Path) -> Any:
    """Loads a file of `torch.save` without running code.

    Raises:
        CheckpointError: The file cannot be read, is no checkpoint, or loading it would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        with path.open("rb") as file:  # torch writes a zip archive, older versions a pickle
            is_torch_file = file.read(2).startswith((b"PK", b"\x80"))
        if not is_torch_file:
            raise CheckpointError(
                f"{path} is not a checkpoint: neither .safetensors nor written by torch.save"
            ) from error
        if (why := foreign_files.why_refused(path)) is not None:
            raise CheckpointError(why) from error
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} holds more than weights, and loading it would run code; save model.state_dict() instead"
            ) from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint, it may be cut short: {error}") from error


def load(module: nn.Module, path: Path) -> list[str]:
    """Loads the weights of a checkpoint into a module; returns notices for the user about names that were adapted.

    Raises:
        CheckpointError: The weights are those of another module; the message names missing, unexpected and misshapen
            tensors.
    """
    expected = module.state_dict()
    loaded, notices = _without_wrappers(weights(path), expected, path)
    problems = [f"{name} is missing" for name in expected if name not in loaded]
    problems += [f"{name} is left over" for name in loaded if name not in expected]
    problems += [
        f"{name} is {list(loaded[name].shape)} there and {list(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in loaded and not is_lazy(tensor) and loaded[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{path} holds the weights of another model: {first_of(problems, 5, '; ')}")
    module.load_state_dict(loaded)
    return notices


def _without_wrappers(
    loaded: dict[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Removes the prefix of a wrapper, such as `module.`, from the names of weights, if a module's names lack it.

    Args:
        loaded: The weights of the file.
        expected: The module's own weights, whose names count.
        path: The file, for messages.

    Returns:
        The weights under the module's names, without those of other parts, and a notice; or, if no prefix makes all
        names fit, the weights as they are and no notice.

    Raises:
        CheckpointError: The module's weights are there under several prefixes.
    """
    if not expected or any(name in loaded for name in expected):
        return loaded, []
    first_name = next(iter(expected))
    prefixes = sorted({name.removesuffix(first_name) for name in loaded if name.endswith(first_name)})
    wrappers = filter(_WRAPPERS.fullmatch, prefixes)
    fitting = [prefix for prefix in wrappers if all(prefix + name in loaded for name in expected)]
    if not fitting:
        return loaded, []
    if len(fitting) > 1:
        raise CheckpointError(
            f"{path} holds the weights more than once, under {' and '.join(fitting)}: save one of them"
        )
    (prefix,) = fitting
    notice = f"{path}: its names begin with {prefix}, which the module's do not: it is removed"
    if other_names := [name for name in loaded if not name.startswith(prefix)]:
        notice += f", and so are the weights of other parts: {first_of(other_names, 3)}"
    return {name.removeprefix(prefix): loaded[name] for name in loaded if name.startswith(prefix)}, [notice]
