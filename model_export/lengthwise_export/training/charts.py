"""The charts of the training report as SVG, each with axes and numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

_LEFT: Final = 64
_TOP: Final = 14
_BOTTOM: Final = 52
_RIGHT: Final = 16


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against probability: a bar for each bin, the darker the more answers it has; their number above it.

    Args:
        bins: As `reliability` of `quality.quality`.
    """
    size = 300
    most = max(one["answers"] for one in bins)
    drawn = ""
    for one in bins:
        left, wide = _LEFT + one["from"] * size, (one["to"] - one["from"]) * size - 1
        top = _TOP + (1 - one["accuracy"]) * size
        strength = 0.15 + 0.85 * math.sqrt(one["answers"] / most)
        drawn += (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{one["accuracy"] * size:.1f}" '
            f'fill="var(--one)" fill-opacity="{strength:.2f}"><title>{one["answers"]} answers, '
            f"{one['confidence']:.3f} sure, {one['accuracy']:.3f} right</title></rect>"
            f'<text x="{left + wide / 2:.1f}" y="{max(top - 3, 10):.1f}" text-anchor="middle">{one["answers"]}</text>'
        )
    drawn += f'<line x1="{_LEFT}" y1="{_TOP + size}" x2="{_LEFT + size}" y2="{_TOP}" stroke="currentColor"/>'
    shares = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    axes = _axes(size, size, ("probability of the answer", shares), ("share of right answers", shares))
    label = "Share of right answers by probability, with the number of answers of each bar"
    return _svg(size, size, label, axes + drawn)


def losses(epochs: Sequence[Mapping[str, Any]]) -> str:
    """The losses of training and, where there is any, of validation, over the epochs.

    Args:
        epochs: As `epochs` of `metrics.json`.
    """
    wide, high = 560, 240
    lines = {
        name: [float(epoch[key]) for epoch in epochs if epoch.get(key) is not None]
        for name, key in (("training", "training_loss"), ("validation", "validation_loss"))
    }
    marks = _marks(max((max(values) for values in lines.values() if values), default=1.0))
    drawn = ""
    for place, (name, values) in enumerate((name, values) for name, values in lines.items() if values):
        color = ("var(--one)", "var(--other)")[name == "validation"]
        points = " ".join(
            f"{_LEFT + index / max(len(values) - 1, 1) * wide:.1f},{_TOP + (1 - value / marks[-1]) * high:.1f}"
            for index, value in enumerate(values)
        )
        row = _TOP + 12 + 17 * place
        drawn += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
        drawn += f'<rect x="{_LEFT + wide - 95}" y="{row - 9}" width="10" height="10" fill="{color}"/>'
        drawn += f'<text x="{_LEFT + wide - 80}" y="{row}">{name}</text>'
    every = max(1, math.ceil(len(epochs) / 8))
    numbers = [(place / max(len(epochs) - 1, 1), str(place + 1)) for place in range(0, len(epochs), every)]
    axes = _axes(wide, high, ("epoch", numbers), ("loss", [(mark / marks[-1], f"{mark:g}") for mark in marks]))
    return _svg(wide, high, "Losses by epoch", axes + drawn)


def _marks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`."""
    rough = (top if top > 0 and math.isfinite(top) else 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(number * step, 12) for number in range(math.ceil(top / step) + 1 if math.isfinite(top) else 5)]


Axis = tuple[str, Sequence[tuple[float, str]]]
"""What an axis shows, and its marks: places from 0 to 1, and their texts."""


def _axes(wide: float, high: float, across: Axis, up: Axis) -> str:
    drawn = ""
    for share, text in up[1]:
        y = _TOP + (1 - share) * high
        drawn += f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + wide}" y2="{y:.1f}" stroke="var(--line)"/>'
        drawn += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(text)}</text>'
    for share, text in across[1]:
        x = _LEFT + share * wide
        drawn += f'<text x="{x:.1f}" y="{_TOP + high + 18}" text-anchor="middle">{html.escape(text)}</text>'
    middle = _TOP + high / 2
    turned = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
    drawn += f'<text x="{_LEFT + wide / 2}" y="{_TOP + high + 40}" text-anchor="middle">{html.escape(across[0])}</text>'
    return f'{drawn}<text x="14" y="{middle}" {turned}>{html.escape(up[0])}</text>'


def _svg(wide: float, high: float, label: str, content: str) -> str:
    size = f'width="{_LEFT + wide + _RIGHT}" height="{_TOP + high + _BOTTOM}"'
    return f'<svg {size} role="img" aria-label="{html.escape(label)}">{content}</svg>'
