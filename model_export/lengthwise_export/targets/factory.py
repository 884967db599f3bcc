"""Imports and calls the factory of a user's module: `package.module:factory`, or `file.py:factory`.

Packages in the working directory are found too, as with `python -m`. The factory is the user's code, so errors include
its line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lengthwise.errors import ConfigurationError
from lengthwise_export.targets import keras
from lengthwise_export.tracing.source_lines import is_users, location_of

_READ: dict[str, tuple[Path, int]] = {}
"""The files that targets were read from, by the names of their modules, with the times at which they were changed."""


def module_of(text: str) -> nn.Module:
    """The module that a factory returns, or the module itself if the name is one. Random weights have a fixed seed."""
    where, _, name = text.rpartition(":")
    made: Any = _imported(where, text)
    for part in name.split("."):
        if not hasattr(made, part):
            there = ", ".join(_own(made))
            raise ConfigurationError(f"{text}: {where} has no {name}" + (f"; it has {there}" if there else ""))
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ConfigurationError(f"{text} is a {type(made).__name__}: name a function that returns a torch module")
        torch.manual_seed(0)
        before = random.getstate()
        random.seed(0)  # Keras draws the seeds of its weights from it
        try:
            made = made()
        except (Exception, SystemExit) as error:  # the user's own code
            raise ConfigurationError(f"{text} raises: {_told(error)}") from error
        finally:
            random.setstate(before)
    if is_keras(made):
        keras.require_backend()
    if type(made).__name__ == "ExportedProgram":  # torch.export takes long to import, only to ask this
        made = made.module()
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"{text} gives a {type(made).__name__}: it must return a torch.nn.Module")
    return made


def prefer_torch() -> None:
    """Makes torch the backend of a Keras that is imported later by a user's file, unless the user chose another."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")


def is_keras(thing: object) -> bool:
    """Whether an object is a layer or a model of Keras. Imports nothing."""
    return any(
        kind.__module__.partition(".")[0] in ("keras", "tf_keras") and kind.__name__ == "Layer"
        for kind in type(thing).__mro__
    )


def _forget_another(path: Path) -> None:
    """Lets a file be imported again if it was changed, or if another file of its name was imported before.

    A notebook or a test checks a file, changes it, and checks it again. An installed package of that name stays.
    """
    known = sys.modules.get(path.stem)
    file = getattr(known, "__file__", None)
    if known is None or file is None or not path.is_file():
        return
    before, changed = _READ.get(path.stem, (None, 0))
    is_other = Path(file).resolve() != path and is_users(file)
    if is_other or (before == path and path.stat().st_mtime_ns != changed):
        del sys.modules[path.stem]
        importlib.invalidate_caches()
        # Python takes bytecode for that of a file if size and second of the last change are the same
        with suppress(OSError, NotImplementedError):
            Path(importlib.util.cache_from_source(str(path))).unlink()


def _imported(where: str, text: str) -> ModuleType:
    prefer_torch()
    path = Path(where)
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigurationError(f"{text}: there is no file {where}")
        folder, name = str(path.resolve().parent), path.stem
        _forget_another(path.resolve())
    else:
        folder, name = str(Path.cwd()), where
    if sys.path[:1] != [folder]:  # a package of the user's goes before an installed one of that name
        sys.path[:] = [folder, *(other for other in sys.path if other != folder)]
    try:
        changed = path.stat().st_mtime_ns if path.suffix == ".py" else 0
        module = importlib.import_module(name)
        if path.suffix == ".py":
            _READ[name] = (path.resolve(), changed)
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{text}: there is no module {error.name}, neither installed nor below the working directory"
            ) from error
        raise ConfigurationError(f"{text}: importing it needs {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConfigurationError(f"{text}: importing it raises {_told(error)}") from error


def _own(made: Any) -> list[str]:
    """The public functions and classes that a module defines itself."""
    if not isinstance(made, ModuleType):
        return []
    return [
        name
        for name, held in vars(made).items()
        if not name.startswith("_") and callable(held) and getattr(held, "__module__", None) == made.__name__
    ]


def _told(error: BaseException) -> str:
    location = location_of(error)
    return f"{type(error).__name__}: {error}" + ("" if location is None else f" ({location})")
