"""One run of a Keras model: the mask that the lengths make, and where it stands for one that Keras would compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lengthwise_export.keras_models import recurrent
from lengthwise_export.keras_models.functional import GraphMasks, masks_in
from lengthwise_export.masks import step_mask


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


class KerasRun:
    """One run: the lengths `[rows]`, the mask that they make, and the values of masked steps before they changed.

    Without lengths each row is a sequence of the full width, without a mask.
    """

    def __init__(self, known: KnownLayers, steps: Tensor, lengths: Tensor | None) -> None:
        self.known = known
        self.steps = steps
        self.lengths = lengths
        self.mask = None if lengths is None else step_mask(lengths, steps.shape[1])
        # The tensors are kept alive, so that no other tensor gets their id.
        self._unfilled: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_traced(self) -> bool:
        """Whether the run is a trace, in which values cannot be compared."""
        return torch.compiler.is_exporting() or type(self.steps) is not Tensor

    def is_over_input(self, layer: Any, inputs: Tensor) -> bool:
        """Whether a layer reads the steps as they came in, if need be with an axis for their one feature."""

        def is_same() -> bool:
            own = self.steps if inputs.dim() == self.steps.dim() else self.steps.unsqueeze(-1)
            return inputs.shape == own.shape and torch.equal(inputs.double(), own.double())

        return self.known.is_learned(layer, is_same)

    def named(self, operation: Any) -> Callable[..., Any]:
        """What calls an operation between layers under its name."""
        return self.known.part_of(operation)

    def is_by_lengths(self, layer: Any, mask: Tensor) -> bool:
        """Whether the mask of a layer is that of the lengths."""
        if self.mask is None:
            return False
        own = self.mask
        return self.known.is_learned(layer, lambda: mask.shape == own.shape and torch.equal(mask.bool(), own))

    def fill(self, values: Tensor, instead: Tensor | float) -> Tensor:
        """Replaces the values of masked steps `[rows, width, features]`."""
        assert self.mask is not None
        kept = torch.where(self.mask.unsqueeze(-1), values, instead)
        self._unfilled[id(kept)] = (kept, values)
        return kept

    def unfilled(self, values: Tensor) -> Tensor:
        """The same values at valid steps, without the work of replacing those of masked steps."""
        return self._unfilled.get(id(values), (values, values))[1]

    def lengths_at(self, values: Tensor) -> Tensor | None:
        """The lengths for a recurrent layer that has no mask.

        A trace gives it those of the sequences, if its input may be as wide as the batch: that makes no difference to
        the answers of a model without leaks, and only such a model is traced with lengths.
        """
        if self.lengths is None or not self.is_traced:
            return None
        if values.shape[:2] == self.steps.shape[:2]:
            return self.lengths
        return torch.full((values.shape[0],), values.shape[1], dtype=torch.int64)
