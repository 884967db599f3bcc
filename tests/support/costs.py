"""Cost tables whose every entry is known."""

import numpy as np

from lengthwise.batching.cost import CostTable


def linear_table(fixed: float, per_step: float) -> CostTable:
    """`fixed` seconds a run and `per_step` for each padded step, exactly, up to 64 rows."""
    rows, widths = [1, 2, 4, 8, 16, 32, 64], [4, 4096]
    return CostTable(rows, widths, fixed + per_step * np.outer(rows, widths).astype(np.float64))
