"""The page of `lengthwise bench --html`: the figures of each load, with pictures, in one file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

from lengthwise.bench.figures import PADDING_NOTE, Figures, errors, milliseconds, padding
from lengthwise.reports import look

PERCENTILES: Final = ("p50", "p95", "p99", "p99_9")
_COLOURS: Final = ("var(--accent)", "var(--good)", "var(--second)", "var(--bad)")
_WIDTH: Final = 760
_HEIGHT: Final = 300
_LEFT: Final = 70
_RIGHT: Final = 20
_TOP: Final = 30
_BOTTOM: Final = 46
_STYLE: Final = """
td + td, th + th { text-align: right; }
div.table { overflow-x: auto; }
polyline { fill: none; stroke-width: 2; }
line.grid { stroke: var(--line); }
svg text { font-size: 12px; }
"""


def page(rows: Sequence[Figures], title: str) -> str:
    """The figures of loads as a page.

    Args:
        rows: One for each load.
        title: The name of the measurement.
    """
    name = html.escape(title)
    client = max(row.client_core_share for row in rows)
    compared = "compared" if all(row.wrong is not None for row in rows) else "not compared"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{look.style()}{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
        f"<p>Latency counts from the moment a request was due. Answers were {compared} with unbatched ones. "
        f"The client took up to {client:.0%} of a core. {PADDING_NOTE.capitalize()}.</p>\n"
        f'<div class="table" tabindex="0" role="group" aria-label="Figures of each load">{_table(rows)}</div>\n'
        f"{_picture(rows)}\n</main>\n</body>\n</html>\n"
    )


def _table(rows: Sequence[Figures]) -> str:
    heads = (
        "load",
        "requests/s",
        "sequences/s",
        *(f"{name.replace('_', '.')}, ms" for name in PERCENTILES),
        "padding",
        "rows of a batch",
        "errors",
    )
    lines = []
    for row in rows:
        latency = row.latency_ms
        cells = [
            row.load,
            f"{row.requests_per_second:,.0f}",
            f"{row.sequences_per_second:,.0f}",
            *(milliseconds(getattr(latency, name) if latency else None) for name in PERCENTILES),
            padding(row),
            "-" if row.rows_per_batch is None else f"{row.rows_per_batch:.1f}",
            errors(row),
        ]
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _picture(rows: Sequence[Figures]) -> str:
    """Latency percentiles of each load, logarithmic: along the loads if there are several."""
    answered = [row for row in rows if row.latency_ms is not None]
    if not answered:
        return "<p>No request was answered.</p>"
    lines = [[float(getattr(row.latency_ms, name)) for row in answered] for name in PERCENTILES]
    low = math.floor(math.log10(max(min(min(line) for line in lines), 1e-3)))
    high = max(math.ceil(math.log10(max(max(line) for line in lines))), low + 1)

    def x(place: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (place + 0.5) / len(answered)

    def y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>')
    for place, (name, colour, line) in enumerate(zip(PERCENTILES, _COLOURS, lines, strict=True)):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(line))
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
        parts += [
            f'<circle cx="{x(index):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}">'
            f"<title>{html.escape(answered[index].load)}: {name.replace('_', '.')} {milliseconds(value)} ms</title>"
            "</circle>"
            for index, value in enumerate(line)
        ]
        left = _LEFT + 90 * place
        parts.append(f'<circle cx="{left}" cy="10" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 10}" y="14">{name.replace("_", ".")}</text>')
    every = max(1, len(answered) // 8)
    parts += [
        f'<text x="{x(index):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">'
        f"{answered[index].requests_per_second:,.0f}</text>"
        for index in range(0, len(answered), every)
    ]
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">answered requests a second</text>')
    return (
        f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="Latency percentiles of each load">'
        f"{''.join(parts)}</svg><figcaption>Latency percentiles of each load.</figcaption></figure>"
    )
