"""What is known of the layers of a Keras model: which masks are those of the lengths, and what its cells compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lengthwise_export.keras_models import recurrent
from lengthwise_export.keras_models.functional import GraphMasks, masks_in


def identity(part: Any) -> int:
    """A number for a layer, an operation or a cell, which the stand-in that a trace makes of it has too."""
    return id(getattr(part, "_tracker", part))  # a stand-in has a copy of the attributes, with the same tracker


class KnownLayers(nn.Module):
    """What the runs of a model know of its layers; it holds the weights of the recurrent ones in ONNX's layout.

    While it is `learning`, runs compare masks and inputs, to learn which are the same in every run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learning = False
        self._learned: dict[int, bool] = {}
        self._forms: dict[int, recurrent.CellForm | str] = {}
        self._weights: dict[tuple[int, ...], recurrent.CellWeights] = {}
        self._masks: dict[int, GraphMasks] = {}
        self._operations: dict[int, nn.Module] = {}

    def name(self, operation: Any, part: nn.Module) -> None:
        """Lets a part call an operation between layers."""
        self._operations[identity(operation)] = part

    def part_of(self, operation: Any) -> Callable[..., Any]:
        """What calls an operation between layers, as a part of the module if it is in the summary."""
        called: Callable[..., Any] = self._operations.get(identity(operation), operation)
        return called

    def is_learned(self, layer: Any, compare: Callable[[], bool]) -> bool:
        """Whether what `compare` compares was equal in every run of `agreement`."""
        if self.learning:
            self._learned[identity(layer)] = compare() and self._learned.get(identity(layer), True)
        return self._learned.get(identity(layer), False)

    def gets_lengths(self, layer: Any) -> bool:
        """Whether the mask of a recurrent layer is that of the lengths."""
        return self._learned.get(identity(layer), False)

    def form_of(self, cell: Any) -> recurrent.CellForm | str:
        """What a cell computes; or, as a text, why it has no counterpart in ONNX."""
        if identity(cell) not in self._forms:
            self._forms[identity(cell)] = recurrent.form_of(cell)
        return self._forms[identity(cell)]

    def masks_in(self, function: Any) -> GraphMasks:
        """The masks in the graph of a functional model, of this model or inside it."""
        if identity(function) not in self._masks:
            self._masks[identity(function)] = masks_in(function)
        return self._masks[identity(function)]

    def weights_of(self, cells: Sequence[Any], form: recurrent.CellForm) -> recurrent.CellWeights:
        """The weights of the cells of the directions of one layer, copied once."""
        key = tuple(map(identity, cells))
        if key not in self._weights:
            self._weights[key] = recurrent.CellWeights(cells, form)
            self.add_module(f"recurrent_weights_{len(self._weights)}", self._weights[key])
        return self._weights[key]
