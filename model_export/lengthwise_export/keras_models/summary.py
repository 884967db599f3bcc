"""The layers of a Keras model as its summary lists them, with the operations between the layers of a functional one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SummaryLayer:
    """A layer of a model, or an operation between layers."""

    path: str  # Its name; inside a nested model or a layer of the user's, `model/layer`
    layer: Any
    place: int  # The number, in the summary of the whole model and from 1, of the layer that it is or is in
    count: int  # How many layers that summary lists

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.layer).__name__

    @property
    def is_whole(self) -> bool:
        """Whether it is a layer of Keras itself, and not a model or a layer of the user's."""
        return type(self.layer).__module__.startswith("keras.") and not hasattr(self.layer, "layers")

    def __str__(self) -> str:
        """`layer 3 of 5 in the summary`; inside another layer `in layer 3 of 5 in the summary`."""
        return f"{'in ' if '/' in self.path else ''}layer {self.place} of {self.count} in the summary"


def layers_of(model: Any) -> Iterator[SummaryLayer]:
    """The layers of a model in the order of its summary; those inside one of them follow it."""
    is_graph = hasattr(model, "operations") and type(model).__name__ != "Sequential"
    layers = list(model.operations if is_graph else model.layers)
    for place, layer in enumerate(layers, 1):
        yield from _with_inner(SummaryLayer(layer.name, layer, place, len(layers)))


def _with_inner(outer: SummaryLayer) -> Iterator[SummaryLayer]:
    yield outer
    if outer.is_whole:
        return
    for layer in outer.layer._flatten_layers(include_self=False, recursive=False):
        yield from _with_inner(SummaryLayer(f"{outer.path}/{layer.name}", layer, outer.place, outer.count))


def output_names(model: Any) -> tuple[str, ...]:
    """The names of a model's outputs; those of one layer with several outputs get numbers. Empty if it has none."""
    names: list[str] = []
    for name in getattr(model, "output_names", None) or ():
        number, unique = 0, str(name)
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return tuple(names)
