"""The layers of a Keras model as its summary lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SummaryLayer:
    """A layer of a model.

    Attributes:
        path: Its name; inside a nested model `model/layer`.
        layer: The layer.
        place: Its number in the summary of its model, from 1.
        count: How many layers that summary lists.
        parents: The numbers of the nested models that it is in, outermost first.
    """

    path: str
    layer: Any
    place: int
    count: int

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.layer).__name__

    def __str__(self) -> str:
        """`layer 3 of 5: lstm_1 (LSTM)`."""
        return f"layer {self.place} of {self.count}: {self.path} ({self.kind})"


def layers_of(model: Any, prefix: str = "") -> Iterator[SummaryLayer]:
    """The layers of a model in the order of its summary; those of a nested model follow it."""
    layers = list(model.layers)
    for place, layer in enumerate(layers, 1):
        path = f"{prefix}{layer.name}"
        yield SummaryLayer(path, layer, place, len(layers))
        if hasattr(layer, "layers"):
            yield from layers_of(layer, f"{path}/")
