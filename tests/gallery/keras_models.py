"""What the rooms of Keras models share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras


def exhibit(seed: int | None, **said: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Seeds Keras for a factory; `keras_index` reads what is `said` of its model."""

    def seeded(make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def factory(*given: Any) -> Any:
            if seed is not None:
                keras.utils.set_random_seed(seed)
            return make(*given)

        return factory

    return seeded


def sequential(features: int, *layers: Any) -> Any:
    """A `keras.Sequential` of steps with these features."""
    return keras.Sequential([keras.Input(shape=(None, features)), *layers])
