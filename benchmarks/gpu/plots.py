"""Pictures of the results, where matplotlib is installed: throughput, latency, what batches cost, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.summary import TITLES, middle
from benchmarks.gpu.throughput import FAMILIES

Found = dict[str, Any]
_COLORS = {"service": "#b8322a", "partition": "#222222", "alone": "#8a8a8a", "arrival": "#3b6ea5", "torch": "#3a8a5f"}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """One picture a section that has figures; the paths of those drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    fills: dict[str, Callable[[Any, Found], None]] = {
        "throughput": _throughput,
        "latency": _latency,
        "costs": _costs,
        "memory": _memory,
    }
    paths = []
    for name, fill in fills.items():
        figures = results["sections"].get(name, {}).get("figures")
        if not figures:
            continue
        figure, axes = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
        try:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, alpha=0.25)
            fill(axes, figures)
            # A picture goes its own way: what it is of must stand in it.
            figure.suptitle(f"{results['device']}: {results['label']}", fontsize=8)
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=144)
            paths.append(folder / f"{name}.png")
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # cut short before there was anything to draw
        finally:
            pyplot.close(figure)
    return paths


def _throughput(axes: Any, figures: Found) -> None:
    names = [*figures["best"]]
    families = [family for family in FAMILIES if any(family in figures["best"][name] for name in names)]
    width = 0.8 / len(families)
    for number, family in enumerate(families):
        there = [
            (place, figures["best"][name][family])
            for place, name in enumerate(names)
            if family in figures["best"][name]
        ]
        at = [place + (number - (len(families) - 1) / 2) * width for place, _ in there]
        middle = [found["median"] for _, found in there]
        spread = [
            [found["median"] - found["low"] for _, found in there],
            [found["high"] - found["median"] for _, found in there],
        ]
        axes.bar(at, middle, width, yerr=spread, label=TITLES[family], color=_COLORS[family], error_kw={"linewidth": 1})
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=7)
    axes.set_ylabel("sequences/s")
    axes.legend(frameon=False, fontsize=7)


def _latency(axes: Any, figures: Found) -> None:
    keys = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "p99_9_ms": "p99.9"}
    for name, rounds in figures["half_load"].items():
        if name != "rate" and middle(rounds, "p50_ms") is not None:
            color = _COLORS.get(name.partition(",")[0])
            line = "--" if "256" in name and name.startswith("service") else "-"
            axes.plot([*keys.values()], [middle(rounds, key) for key in keys], f"o{line}", label=name, color=color)
    axes.set_yscale("log")
    axes.set_ylabel("latency from the moment due, ms")
    axes.set_title(f"Poisson, {figures['half_load']['rate']:,.0f} sequences/s", fontsize=9)
    axes.legend(frameon=False, fontsize=7)


def _costs(axes: Any, figures: Found) -> None:
    table = figures["tables"]["fp32"]
    for rows, seconds in zip(table["rows"], table["seconds"], strict=True):
        axes.plot(table["widths"], [1e3 * each for each in seconds], "o-", markersize=3, label=f"{rows}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("width, steps")
    axes.set_ylabel("one batch, ms")
    axes.legend(title="rows", frameon=False, fontsize=7)


def _memory(axes: Any, figures: Found) -> None:
    axes.plot([int(count) for count in figures["mib"]], [*figures["mib"].values()], "o-")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batches of random shapes")
    axes.set_ylabel("memory in use, MiB")
