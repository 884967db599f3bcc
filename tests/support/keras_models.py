"""Keras models for tests, by name; building them needs Keras, importing this module does not."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lengthwise_export.keras_models.backend import import_keras

NEEDS_KERAS = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="the extra `keras` is not installed")
"""Imports nothing: each process collects all tests, and few need Keras."""

FEATURES = 6
CLASSES = 3


def keras() -> Any:
    """Keras on torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_keras()


def sequential(*layers: Any, dense: bool = True) -> Any:
    """A model of layers in a row, with a Dense behind them."""
    made = keras().layers
    return keras().Sequential([made.Input((None, FEATURES)), *layers, *([made.Dense(CLASSES)] if dense else [])])


def functional(body: Callable[[Any], Any]) -> Any:
    """A functional model, from its input to its output."""
    symbol = keras().Input((None, FEATURES))
    return keras().Model(symbol, body(symbol))


def built(make: Callable[[], Any], seed: int = 0) -> Any:
    """A model with the same weights each time; none of them is 0, so that a bias shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layers that drop the mask
        keras().utils.set_random_seed(seed)
        model = make()
        random = np.random.default_rng(seed)
        model.set_weights(
            [values if values.dtype.kind != "f" else _moved(values, random) for values in weights_of(model)]
        )
    return model


def _moved(values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Weights with a little noise; what is positive, such as a variance, stays so."""
    return np.asarray(values + random.uniform(0.01, 0.1, values.shape), dtype=values.dtype)


def weights_of(model: Any) -> list[NDArray[Any]]:
    """The weights of a model."""
    return [variable.value.detach().numpy().copy() for variable in model.weights]


def alone(model: Any, sequence: NDArray[Any]) -> NDArray[Any]:
    """The answer of Keras itself to one sequence, without padding."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return np.asarray(model(torch.from_numpy(sequence[None]), training=False).numpy()[0])


def saved(model: Any, path: Path) -> Path:
    """The path of a file with the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


@functools.cache
def two_lstms() -> Any:
    """Masking, two LSTM layers and a softmax."""
    layers = keras().layers
    return built(
        lambda: sequential(
            layers.Masking(0.0),
            layers.LSTM(8, return_sequences=True),
            layers.LSTM(8),
            layers.Dense(CLASSES, activation="softmax"),
            dense=False,
        )
    )
