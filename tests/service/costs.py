"""Cost tables whose every entry is known."""

from __future__ import annotations

import numpy as np

from service.cost import CostTable


def linear_table(fixed: float, per_step: float) -> CostTable:
    """`fixed` seconds a run and `per_step` for each padded step, exactly, whatever the shape."""
    return CostTable([1, 2], [4, 8], fixed + per_step * np.array([[4, 8], [8, 16]]))
