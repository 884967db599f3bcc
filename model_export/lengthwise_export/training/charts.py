"""The charts of the training report as SVG, each with axes and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.reports.chart import Chart
from lengthwise.reports.page import Html, element


def reliability(bins: Sequence[Mapping[str, Any]]) -> Html:
    """Accuracy against probability: a bar for each bin, the darker the more answers it has; their number above it.

    Args:
        bins: As `reliability` of `quality.quality`.
    """
    most = max(one["answers"] for one in bins)
    shares = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    chart = Chart(300, 300, ("predicted probability", shares), ("accuracy", shares))
    for one in bins:
        strength = 0.15 + 0.85 * math.sqrt(one["answers"] / most)
        said = f"{one['answers']} predictions, probability {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        look = {"fill": "var(--accent)", "fill_opacity": f"{strength:.2f}"}
        chart.bar(one["from"], one["to"] - 0.003, one["accuracy"], element("title", said), **look)
        chart.text((one["from"] + one["to"]) / 2, one["accuracy"], one["answers"], down=-3)
    chart.line([(0, 0), (1, 1)], "currentColor", stroke_width=1)
    return chart.figure("Accuracy by predicted probability, with the number of predictions in each bar")


def losses(epochs: Sequence[Mapping[str, Any]]) -> Html:
    """The losses of training and, where there is any, of validation, over the epochs.

    Args:
        epochs: As `epochs` of `metrics.json`.
    """
    lines = {
        name: [float(epoch[key]) for epoch in epochs if epoch.get(key) is not None]
        for name, key in (("training", "training_loss"), ("validation", "validation_loss"))
    }
    marks = _marks(max((max(values) for values in lines.values() if values), default=1.0))
    every = max(1, math.ceil(len(epochs) / 8))
    numbers = [(place / max(len(epochs) - 1, 1), str(place + 1)) for place in range(0, len(epochs), every)]
    chart = Chart(560, 240, ("epoch", numbers), ("loss", [(mark / marks[-1], f"{mark:g}") for mark in marks]))
    colors = ("var(--accent)", "var(--second)")
    for place, ((name, values), color) in enumerate(zip(lines.items(), colors, strict=True)):
        if values:
            last = max(len(values) - 1, 1)
            chart.line([(index / last, value / marks[-1]) for index, value in enumerate(values)], color)
            chart.line([(0.82, 0.95 - 0.07 * place), (0.85, 0.95 - 0.07 * place)], color)
            chart.text(0.86, 0.95 - 0.07 * place, name, "start", down=4)
    return chart.figure("Losses by epoch")


def _marks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`."""
    rough = (top if top > 0 and math.isfinite(top) else 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 12) for number in range(math.ceil(top / step) + 1 if math.isfinite(top) else 5)]
