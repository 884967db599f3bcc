"""The mask of valid steps in torch. `lengthwise.padding.step_mask` is the same in NumPy."""

from __future__ import annotations

import torch
from torch import Tensor


def step_mask(lengths: Tensor, width: int) -> Tensor:
    """`[rows, width]` bool, true at the valid steps of `lengths [rows]`."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
