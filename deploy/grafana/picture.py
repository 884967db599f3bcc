"""Draws the dashboard's curves from a Prometheus: `picture.py http://localhost:9090 docs/dashboard.png`.

The queries are the dashboard's own; the look is matplotlib's, not Grafana's.
"""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

DASHBOARD = Path(__file__).resolve().parent / "dashboards" / "lengthwise.json"
POINTS = 120
COLUMNS = 3
CHOICES = {"$job": ".*", "$model": ".*"}

Series = list[dict[str, Any]]


def filled(expression: str, interval_seconds: float) -> str:
    """A panel's expression with the dashboard's variables filled in: everything, over an interval."""
    for name, choice in {**CHOICES, "$__rate_interval": f"{interval_seconds:g}s"}.items():
        expression = expression.replace(name, choice)
    return expression


def asked(prometheus: str, path: str, fields: Mapping[str, str | float]) -> Any:
    """The data that Prometheus answers.

    Raises:
        HTTPError: It does not accept the query.
    """
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(fields)}", timeout=30) as answer:
        return json.load(answer)["data"]


def label(legend: str, labels: Mapping[str, str]) -> str:
    """A curve's legend with its labels filled in."""
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def draw(prometheus: str, picture: Path, *, seconds: float = 600, interval_seconds: float = 20) -> None:
    """Draws every panel that has a course in time.

    Args:
        prometheus: Its URL.
        picture: Where the PNG goes.
        seconds: How far back.
        interval_seconds: Over which rates are taken; at least two scrapes.
    """
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "table"]
    rows = math.ceil(len(panels) / COLUMNS)
    figure, places = plt.subplots(rows, COLUMNS, figsize=(15, 2.6 * rows), layout="constrained")
    end = time.time()
    for axes, panel in zip(places.flat, panels, strict=False):
        curves: list[tuple[str, Series]] = []
        for target in panel["targets"]:
            span = {"start": end - seconds, "end": end, "step": seconds / POINTS}
            found = asked(prometheus, "query_range", {"query": filled(target["expr"], interval_seconds), **span})
            curves.append((target["legendFormat"], found["result"]))
        axes.set_title(panel["title"], fontsize=10, loc="left")
        axes.tick_params(labelsize=7)
        if panel["type"] == "heatmap":
            _heat_map(axes, curves[0][1], end)
        else:
            _curves(axes, curves, end)
    for axes in places.flat[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def _curves(axes: Axes, curves: list[tuple[str, Series]], end: float) -> None:
    for legend, series in curves:
        for one in series:
            times, values = np.array(one["values"], dtype=float).T
            axes.plot(times - end, values, linewidth=1, label=label(legend, one["metric"]))
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=6, loc="upper left")


def _heat_map(axes: Axes, series: Series, end: float) -> None:
    """Buckets of a histogram over time; Prometheus counts them cumulatively."""
    buckets = sorted(series, key=lambda one: float(one["metric"]["le"]))
    times = sorted({at for one in buckets for at, _ in one["values"]})
    counts = np.zeros((len(buckets), len(times)))
    for row, one in enumerate(buckets):
        known = dict(one["values"])
        counts[row] = [float(known.get(at, 0)) for at in times]
    counts[1:] -= counts[:-1].copy()
    axes.pcolormesh(np.array(times) - end, np.arange(len(buckets)), np.sqrt(np.maximum(counts, 0)), shading="nearest")
    axes.set_yticks(range(len(buckets)), [one["metric"]["le"].removesuffix(".0") for one in buckets], fontsize=5)


if __name__ == "__main__":
    draw(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
