"""A Keras model as a torch module `forward(steps, lengths)`, whose mask comes from the lengths.

On its torch backend Keras' layers are torch modules, so the model's own layers run; `replaced` says what is replaced
meanwhile. What Keras does with a mask, and every layer that drops one, stays: `agreement` compares the answers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lengthwise_export.keras_models.known import KnownLayers
from lengthwise_export.keras_models.replaced import replaced_for
from lengthwise_export.keras_models.run import KerasRun
from lengthwise_export.keras_models.summary import SummaryLayer, layers_of, output_names


class KerasModule(nn.Module):
    """A Keras model that takes lengths, or the steps alone.

    Its layers are its torch children, by their names in the model's summary, so that operators are named by layer.
    """

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
        """Runs `[rows, width, features]`, or tokens `[rows, width]`, with lengths `[rows]`.

        Without lengths there is no mask: each row is a sequence of its own of the full width.
        """
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
