"""Keras models as targets: how they are recognised. What reads them is the annex `keras_models`.

This is the only module of core that imports that annex, and only when a target is a Keras model.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lengthwise_export.options import TargetOptions
    from lengthwise_export.targets.target import Target

SUFFIXES: Final = frozenset({".keras", ".h5", ".hdf5"})
"""The suffixes of files that hold a Keras model."""


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


def require_backend() -> None:
    """Makes sure that Keras runs on torch.

    Raises:
        ConfigurationError: Keras is not installed, or was imported with another backend.
    """
    from lengthwise_export.keras_models.backend import import_keras

    import_keras()


def read_file(text: str, options: TargetOptions) -> Target:
    """The Keras model in a file; see `keras_models.keras_targets`."""
    from lengthwise_export.keras_models import keras_targets

    return keras_targets.read_file(text, options)


def of_model(text: str, model: Any, options: TargetOptions) -> Target:
    """A Keras model; see `keras_models.keras_targets`."""
    from lengthwise_export.keras_models import keras_targets

    return keras_targets.of_model(text, model, options)
