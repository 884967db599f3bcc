"""Prints and draws a measured cost table: microseconds per padded step by rows and width.

A column shows the gain of batching: a step takes less time with more rows, until the processor is busy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lengthwise.batching.cost import CostTable
from lengthwise.bench.plots import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def microseconds_per_step(cost: CostTable) -> NDArray[np.float64]:
    """`[rows, widths]` of the table's grid: a batch's time over rows x width."""
    steps = cost.rows[:, None] * cost.widths[None, :]
    result: NDArray[np.float64] = cost.seconds / steps * 1e6
    return result


def table(cost: CostTable, *, title: str) -> Table:
    """The table for the terminal: a line for each number of rows, a column for each width."""
    drawn = Table(title=title, caption="microseconds a padded step", box=SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("rows", justify="right")
    for width in cost.widths.tolist():
        drawn.add_column(str(width), justify="right")
    for rows, line in zip(cost.rows.tolist(), microseconds_per_step(cost).tolist(), strict=True):
        drawn.add_row(str(rows), *(f"{value:.2f}" for value in line))
    return drawn


def draw(cost: CostTable, path: Path, *, title: str) -> None:
    """Draws a line for each width.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """

    def fill(axes: Axes) -> None:
        for width, line in zip(cost.widths.tolist(), microseconds_per_step(cost).T.tolist(), strict=True):
            axes.plot(cost.rows.tolist(), line, "o-", label=f"width {width}", markersize=3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("rows")
        axes.set_ylabel("microseconds a padded step")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=7)

    save(fill, path)
