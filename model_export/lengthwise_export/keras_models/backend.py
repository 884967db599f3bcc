"""Imports Keras with its torch backend. Nothing else of this package imports Keras at its top."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from lengthwise_export.errors import ConfigurationError
from lengthwise_export.tracing.imports import late_modules

VARIABLE: Final = "KERAS_BACKEND"  # the variable of the environment that Keras reads when it is imported
BACKEND: Final = "torch"
_INSTALL: Final = "pip install 'lengthwise[keras]'"


def import_keras() -> ModuleType:
    """Imports Keras 3 with its torch backend, and returns the module `keras`.

    Raises:
        ConfigurationError: Keras 3 is not installed, or Keras was imported with another backend.
    """
    if "keras" not in sys.modules:
        former_backend = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = BACKEND  # Keras reads it once, when it is imported
        try:
            with late_modules():
                importlib.import_module("keras")
        except ImportError as error:
            raise ConfigurationError(f"a Keras model needs Keras 3: {_INSTALL} ({error})") from error
        finally:
            if former_backend is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = former_backend
    # The user may have imported another Keras
    keras = sys.modules["keras"]
    if not hasattr(keras, "config") or not hasattr(keras, "ops"):
        version = getattr(keras, "__version__", "2")
        raise ConfigurationError(f"a Keras model needs Keras 3, and Keras {version} is installed: {_INSTALL}")
    backend = keras.config.backend()
    if backend != BACKEND:
        raise ConfigurationError(
            f"Keras was imported with the backend {backend}; Lengthwise runs Keras models on torch. "
            f"Set {VARIABLE}={BACKEND} before the first import of keras"
        )
    _take_symbolic_sizes()
    leave_stderr_open()
    return keras


@contextlib.contextmanager
def on_device(device: str = "cpu") -> Iterator[None]:
    """Runs Keras on a device of torch during the block.

    Keras then gives no warnings, such as those about dropped masks, and its errors are as the layers raise them.
    """
    keras = import_keras()
    with warnings.catch_warnings(action="ignore"), keras.device(device), contextlib.ExitStack() as cleanup:
        if keras.config.is_traceback_filtering_enabled():
            keras.config.disable_traceback_filtering()
            cleanup.callback(keras.config.enable_traceback_filtering)
        yield


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def leave_stderr_open() -> None:
    """Makes absl, the logger of Keras, write to the real stderr.

    absl closes the stream that it writes to. In notebooks and tests that would be a replacement of stderr, which
    others still need.
    """
    absl = sys.modules.get("absl.logging")
    if absl is not None and sys.__stderr__ is not None:
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


def _take_symbolic_sizes() -> None:
    """Registers with Keras the dtypes of torch's symbolic numbers, as sizes are symbolic in a trace."""
    import torch
    from keras.src.backend.common import dtypes  # Keras has no public name for it

    dtypes_of_types = dtypes.PYTHON_DTYPES_MAP
    for symbolic, number in ((torch.SymInt, int), (torch.SymFloat, float), (torch.SymBool, bool)):
        dtypes_of_types.setdefault(symbolic, dtypes_of_types[number])
