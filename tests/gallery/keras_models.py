"""What the rooms of Keras models share."""

import functools
import inspect
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


def network(seed: int, classes: int, **said: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same for a function of the input, or one that lists layers: a softmax over so many classes is behind them."""

    def factory_of(body: Callable[..., Any]) -> Callable[..., Any]:
        def make() -> Any:
            tokens = "vocabulary" in said
            inputs = keras.Input((None,) if tokens else (None, said["features"]), dtype="int32" if tokens else None)
            is_graph = bool(inspect.signature(body).parameters)
            inside = body(inputs) if is_graph else body()
            head = keras.layers.Dense(classes, activation="softmax")
            return keras.Model(inputs, head(inside)) if is_graph else keras.Sequential([inputs, *inside, head])

        return exhibit(seed, **said)(make)

    return factory_of


def sequential(first: Any, *layers: Any) -> Any:
    """A `keras.Sequential` of an input, or of steps with so many features."""
    return keras.Sequential([keras.Input((None, first)) if isinstance(first, int) else first, *layers])
