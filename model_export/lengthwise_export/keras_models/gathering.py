"""Brings the valid steps of any mask together, so that a recurrent layer with lengths can run over them.

A mask that Keras computes between layers may have gaps. At a masked step a recurrent layer keeps its state, which is
the same as if that step were not there: so the valid steps are moved to the front of their row, in order, and the
outputs are moved back.
"""

from __future__ import annotations

import torch
from torch import Tensor


class GatheredSteps:
    """The valid steps of a batch, by a mask `[rows, width]`, moved to the front of each row; a row may have none."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.bool()
        width = mask.shape[1]
        places = torch.arange(width).expand_as(self._mask)
        sorted_places = torch.where(self._mask, places, places + width).sort(dim=1).values
        self._order = torch.where(sorted_places < width, sorted_places, sorted_places - width)
        self._count = self._mask.sum(1)
        self.lengths = self._count.clamp(min=1)

    def in_front(self, values: Tensor) -> Tensor:
        """`[rows, width, features]` with the valid steps first."""
        return _at(values, self._order)

    def kept(self, state: Tensor, before: Tensor | None) -> Tensor:
        """The state `[rows, hidden]` after the layer: that before it (None for zeros), in a row without valid steps."""
        return torch.where((self._count > 0).unsqueeze(1), state, 0.0 if before is None else before)

    def back(self, outputs: Tensor, *, backwards: bool, repeated: bool) -> Tensor:
        """Outputs `[rows, width, hidden]` of the moved steps, at the places of these, in the order of the layer.

        A masked step repeats the output before it if `repeated`; else it gives 0.
        """
        before = self._mask.flip(1).cumsum(1).flip(1) if backwards else self._mask.cumsum(1)
        place = self._count.unsqueeze(1) - before if backwards else before - 1
        known = self._mask if not repeated else before > 0
        moved = torch.where(known.unsqueeze(-1), _at(outputs, place.clamp(min=0, max=self._mask.shape[1] - 1)), 0.0)
        return moved.flip(1) if backwards else moved


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[2]))
