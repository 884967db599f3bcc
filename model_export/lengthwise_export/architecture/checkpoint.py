"""Weights on disk, read as data: safetensors, or a `state_dict` that torch reads with `weights_only=True`.

Nothing in a checkpoint is ever unpickled into code. A file is written aside and moved into its place, so whoever reads
it sees the one before or the one after, never half of it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lengthwise import files
from lengthwise_export.errors import CheckpointError


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors, and beside them in the same file what JSON can hold.

    Args:
        path: A `.safetensors` file; replaced in one move if it exists.
        tensors: By name.
        state: Kept as JSON in the file's metadata: tensors and state can never be of two different moments.
    """
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"state": json.dumps(state)},
    )
    files.replace(path, data)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write` wrote.

    Returns:
        The tensors by name, and the state; an empty one for a safetensors file made elsewhere.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, _state(file)  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def state(path: Path) -> dict[str, Any]:
    """What `write` kept beside the tensors; of a file made elsewhere its labels, where it keeps some as `labels`.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if path.suffix != ".safetensors":
        held = _held(path)
        beside = isinstance(held, dict) and isinstance(held.get("state_dict"), dict)
        found = held.get("labels") if beside else None
        is_list = isinstance(found, list | tuple) and all(isinstance(label, str) for label in found)
        return {"labels": list(found)} if is_list and found else {}
    try:
        with safe_open(path, framework="pt") as file:
            return _state(file)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _state(file: Any) -> dict[str, Any]:
    found = json.loads((file.metadata() or {}).get("state", "{}"))
    return found if isinstance(found, dict) else {}


def weights(path: Path) -> dict[str, Tensor]:
    """A model's weights by name, from `.safetensors` or from what `torch.save` wrote of a `state_dict`.

    Raises:
        CheckpointError: The file cannot be read as data, or holds something else than weights.
    """
    if path.suffix == ".safetensors":
        return read(path)[0]
    held = _held(path)
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise CheckpointError(f"{path} holds no state_dict, neither as a whole nor under the key 'state_dict'")
    return {str(name): value for name, value in held.items()}


def _held(path: Path) -> Any:
    """What `torch.save` wrote, read as data.

    Raises:
        CheckpointError: The file cannot be read, or holds code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        if not _is_torchs(path):
            raise CheckpointError(f"{path} is no checkpoint: neither .safetensors nor written by torch.save") from error
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} holds more than weights, and reading that would run its code; save model.state_dict() instead"
            ) from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint, it may be cut short: {error}") from error


def _is_torchs(path: Path) -> bool:
    """Whether it begins as a file of `torch.save` does: as a zip archive, or as the pickle of older versions."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def load(module: nn.Module, path: Path) -> None:
    """Puts a checkpoint's weights into a module.

    Raises:
        CheckpointError: They cannot be read, or are not the module's: names what is missing, left over or misshapen.
    """
    held = weights(path)
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in held]
    problems += [f"{name} is left over" for name in held if name not in wanted]
    problems += [
        f"{name} is {list(held[name].shape)} there and {list(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in held and held[name].shape != tensor.shape
    ]
    if problems:
        rest = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} holds the weights of another model: {'; '.join(problems[:5])}{rest}")
    module.load_state_dict(held)
