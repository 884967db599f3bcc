"""Keras models that take their lengths or a mask beside the steps; this module imports Keras."""

from typing import Any

import keras
from keras import layers, ops


class TakesLengths(keras.Model):  # type: ignore[misc]  # keras has no types
    """A subclass that takes its lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.masking, self.gru, self.head = layers.Masking(), layers.GRU(6), layers.Dense(2)

    def call(self, x: Any, lengths: Any) -> Any:
        return self.head(self.gru(x, mask=ops.arange(ops.shape(x)[1]) < lengths[:, None]))


class MasksItself(TakesLengths):
    """The same as the message says."""

    def call(self, x: Any) -> Any:  # type: ignore[override]  # it is what the check is about
        return self.head(self.gru(x, mask=self.masking.compute_mask(x)))


def with_input(**second: Any) -> Any:
    """A model with a second input, the lengths or a mask."""
    steps, other = keras.Input((None, 3), name="steps"), keras.Input(**second)
    mask = other if second.get("dtype") == "bool" else ops.arange(ops.shape(steps)[1]) < other[:, None]
    return keras.Model([steps, other], layers.Dense(2)(layers.GRU(6)(steps, mask=mask)))
