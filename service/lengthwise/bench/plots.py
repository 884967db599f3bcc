"""Draws the picture of a bench: latency against load, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise.bench.figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"p50": "#3b6ea5", "p95": "#e08a1e", "p99": "#b8322a", "p99_9": "#6b2a6b"}


def draw(rows: Sequence[Figures], path: Path, *, title: str) -> None:
    """Draws latency percentiles of each load against its rate: the offered one; in a closed loop the answered one."""
    from matplotlib.ticker import LogLocator

    loads_with_answers = [row for row in rows if row.latency_ms is not None]
    rates = [row.offered_rate or row.requests_per_second for row in loads_with_answers]

    def fill(axes: Axes) -> None:
        """Draws a line for each percentile."""
        for name, color in _COLORS.items():
            values = [getattr(row.latency_ms, name) for row in loads_with_answers]
            axes.plot(rates, values, "o-", label=name.replace("_", "."), color=color)
        axes.set(xlabel="requests/s", ylabel="latency from the moment due, ms", yscale="log", title=title)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend(frameon=False)

    save(fill, path)


def save(fill: Callable[[Axes], None], path: Path, *, size: tuple[float, float] = (7.0, 4.2)) -> None:
    """Writes a picture with one pair of axes, which `fill` draws on; `size` is its width and height in inches."""
    from matplotlib.figure import Figure  # which needs no window and no display

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    fill(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
