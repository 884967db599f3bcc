"""Cost tables whose every entry is known, and what holds of all."""

import numpy as np

from lengthwise.batching.cost import CostTable


def linear_table(fixed: float, per_step: float) -> CostTable:
    """`fixed` seconds a run and `per_step` for each padded step, exactly, up to 64 rows."""
    rows, widths = [1, 2, 4, 8, 16, 32, 64], [4, 4096]
    return CostTable(rows, widths, fixed + per_step * np.outer(rows, widths).astype(np.float64))


def assert_monotone(table: CostTable) -> None:
    """Up to 40 rows and 150 steps: more rows or steps take no less time."""
    predicted = np.array([table.column(width, 40).seconds for width in range(1, 150, 7)])[:, 1:]
    rounding = 1e-9 * predicted.max()
    assert (np.diff(predicted, axis=0) >= -rounding).all()
    assert (np.diff(predicted, axis=1) >= -rounding).all()
    assert (predicted > 0).all()
