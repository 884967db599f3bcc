"""A Keras model as a torch module `forward(steps, lengths)`, whose mask comes from the lengths.

On its torch backend Keras' layers are torch modules, so the model's own layers run; `replaced` says what is replaced
meanwhile. What Keras does with a mask, and every layer that drops one, stays: `agreement` compares the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lengthwise_export.keras_models.replaced import replaced_for
from lengthwise_export.keras_models.run import KerasRun, KnownLayers


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


class KerasModule(nn.Module):
    """A Keras model that takes lengths, or the steps alone; its layers are its children, as the summary names them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._held = (model,)  # in a tuple, so that torch does not register the model itself
        self.known = KnownLayers()
        self.parts: list[tuple[nn.Module, SummaryLayer]] = []
        for layer in layers_of(model):
            name = layer.path.replace(".", "_")
            part = layer.layer
            if not isinstance(part, nn.Module):
                part = NamedOperation(part)
                self.known.name(layer.layer, part)
            self.parts.append((part, layer))
            self.add_module(f"{name}_" if hasattr(self, name) else name, part)

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._held[0]

    def train(self, mode: bool = True) -> KerasModule:
        """Changes no layer: Keras passes the mode with each call, and here it is always that of inference."""
        self.training = False
        return self

    def forward(self, steps: Tensor, lengths: Tensor | None = None) -> Any:
        """Runs `[rows, width, features]`, or tokens `[rows, width]`, with lengths `[rows]`, or without any mask."""
        with replaced_for(KerasRun(self.known, steps, lengths), self.model):
            answer = self.model(steps, training=False)
        names = output_names(self.model)
        if isinstance(answer, list | tuple) and len(answer) == len(names):
            return dict(zip(names, answer, strict=True))
        return answer


class NamedOperation(nn.Module):
    """An operation of Keras between layers, such as an addition, as a part that a trace names."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Calls the operation."""
        return self.operation(*arguments, **options)
