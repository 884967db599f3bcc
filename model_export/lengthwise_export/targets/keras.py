"""Keras models as targets: the hook to the annex `keras_models`, which reads them.

This is the only module of core that imports that annex, and only when a target is a Keras model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lengthwise_export.options import TargetOptions
    from lengthwise_export.targets.target import Target

SUFFIXES: Final = frozenset({".keras", ".h5", ".hdf5"})
"""The suffixes of files that hold a Keras model."""


def require_backend() -> None:
    """Makes sure that Keras runs on torch."""
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
