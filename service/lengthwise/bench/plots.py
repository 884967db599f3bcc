"""Pictures of a bench: latency against load, and the distribution of one load's latencies, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.bench.figures import Figures
from lengthwise.errors import ConfigurationError, how_to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Fill = Callable[["Axes"], None]
"""Draws into one pair of axes."""

_PERCENTILES = {"p50": "#3b6ea5", "p95": "#e08a1e", "p99": "#b8322a", "p99_9": "#6b2a6b"}


def draw_sweep(rows: Sequence[Figures], path: Path, *, title: str) -> None:
    """Latency percentiles against the offered rate (or, of closed loops, against what was answered).

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    answered = [row for row in rows if row.latency_ms is not None]
    offered = all(row.offered_rate is not None for row in answered)
    rates = [(row.offered_rate if offered else None) or row.requests_per_second for row in answered]

    def fill(axes: Axes) -> None:
        for name, color in _PERCENTILES.items():
            label = name.replace("_", ".")
            axes.plot(rates, [getattr(row.latency_ms, name) for row in answered], "o-", label=label, color=color)
        axes.set_xlabel("offered requests/s" if offered else "answered requests/s")
        axes.set_ylabel("latency from the moment due, ms")
        axes.set_yscale("log")
        axes.set_title(title)
        axes.legend(frameon=False)

    save(fill, path)


def draw_percentiles(rows: Sequence[Figures], path: Path, *, title: str) -> None:
    """Each load's latencies, from the middle to the tail.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    names = [*_PERCENTILES, "max"]

    def fill(axes: Axes) -> None:
        for row in rows:
            if row.latency_ms is not None:
                values = [getattr(row.latency_ms, name) for name in names]
                axes.plot([name.replace("_", ".") for name in names], values, "o-", label=row.load)
        axes.set_ylabel("latency from the moment due, ms")
        axes.set_yscale("log")
        axes.set_title(title)
        axes.legend(frameon=False)

    save(fill, path)


def save(fill: Fill, path: Path, *, size: tuple[float, float] = (7.0, 4.2)) -> None:
    """One picture of one pair of axes.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    drawing = pyplot()
    figure, axes = drawing.subplots(figsize=size, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    fill(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
    drawing.close(figure)


def pyplot() -> Any:
    """The pyplot of matplotlib, which needs no window and no display.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as drawing
    except ImportError as error:
        raise ConfigurationError(f"plots need matplotlib: {how_to_install('bench')}") from error
    return drawing
