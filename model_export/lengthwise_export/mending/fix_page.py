"""Formats a proposed fix as a part of the HTML report: operators before and after, and a picture of an answer."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from lengthwise_export.mending.changes import MendedOperator
from lengthwise_export.mending.curve import CANDIDATES, PaddingCurve
from lengthwise_export.mending.fix import FixProposal, title, unified

_WIDTH: Final = 700
_HEIGHT: Final = 260
_LEFT: Final = 60
_RIGHT: Final = 30
_TOP: Final = 20
_BOTTOM: Final = 44
_MARKS: Final = (0.0, 0.5, 1.0, 1.5, 2.0)
_STYLE: Final = """<style>
.removed { color: var(--bad); }
.added { color: var(--good); }
svg polyline { fill: none; stroke-width: 2.5; }
svg polyline.before { stroke: var(--bad); }
svg polyline.after { stroke: var(--good); stroke-dasharray: 7 4; }
</style>"""


def as_section(fix: FixProposal) -> str:
    """The section of the page: what the mend changes, the proof, and an answer against padding."""
    title = "Mend" if fix.mendable else "This model cannot be mended"
    operator = "" if fix.operator is None else f"<code>{html.escape(fix.operator)}</code>: "
    parts = [f"<p>{operator}{html.escape(fix.reason)}</p>"]
    if fix.curve is not None:
        parts.append(_picture(fix.curve))
    if fix.proof is not None:
        parts.append(f"<h3>Proof</h3><p>{html.escape(str(fix.proof))}</p>")
    parts += [_change(change) for change in fix.changes]
    return f"<section>{_STYLE}<h2>{title}</h2>{''.join(parts)}</section>"


def _change(change: MendedOperator) -> str:
    place = "" if change.location is None else f"<p><code>{html.escape(str(change.location))}</code></p>"
    source = "" if change.location is None else f"<pre>{html.escape(change.location.source)}</pre>"
    lines = "\n".join(_line(line) for line in unified(change))
    return f"<h3>{html.escape(title(change))}</h3>{place}{source}<p>{html.escape(change.cause)}</p><pre>{lines}</pre>"


def _line(line: str) -> str:
    kind = {"-": "removed", "+": "added"}.get(line[:1])
    return html.escape(line) if kind is None else f'<span class="{kind}">{html.escape(line)}</span>'


def _picture(curve: PaddingCurve) -> str:
    """The probability of a class against the padding: the original as a line, the mended model as a dashed line."""
    marks = [mark for mark in _MARKS if mark <= curve.shares[-1]]
    scale = curve.shares[-1] or 1.0
    low, high = _range([*curve.before, *curve.after])
    lines = [
        f'<line x1="{_LEFT}" y1="{_y(part):.1f}" x2="{_WIDTH - _RIGHT}" y2="{_y(part):.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{_y(part) + 4:.1f}" text-anchor="end">{low + part * (high - low):.2f}</text>'
        for part in (0.0, 0.5, 1.0)
    ]
    lines += [
        f'<text x="{_x(mark / scale):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{mark:.0%}</text>'
        for mark in marks
    ]
    lines += [
        f'<polyline class="{kind}" points="{_points(curve.shares, values, scale, low, high)}"/>'
        for kind, values in (("before", curve.before), ("after", curve.after))
    ]
    apart = max(abs(value - curve.before[0]) for value in curve.before)
    mended = max(abs(value - curve.after[0]) for value in curve.after)
    return (
        f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="The probability of a class against the padding, before and after">\n'
        + "\n".join(lines)
        + f'\n<text x="{_LEFT}" y="{_HEIGHT - 6}">padding, as a share of the sequence</text>'
        + "</svg><figcaption>The probability of the class of one sequence of "
        f"{curve.length} steps, with more and more zeros behind it. Solid: the original, which moves by up to "
        f"{apart:.2g}. Dashed: the mended model, which moves by up to {mended:.2g}. The sequence is the one of "
        f"{CANDIDATES} random ones that moves most.</figcaption></figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value of the picture: a range of at least 0.1 around the curves, within 0 to 1."""
    middle, height = (min(values) + max(values)) / 2, max(1.2 * (max(values) - min(values)), 0.1)
    low = min(max(middle - height / 2, 0.0), max(1 - height, 0.0))
    return low, min(low + height, 1.0)


def _points(shares: Sequence[float], values: Sequence[float], scale: float, low: float, high: float) -> str:
    parts = [(value - low) / (high - low) for value in values]
    return " ".join(f"{_x(share / scale):.1f},{_y(part):.1f}" for share, part in zip(shares, parts, strict=True))


def _x(part: float) -> float:
    return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)


def _y(part: float) -> float:
    return _TOP + (1 - part) * (_HEIGHT - _TOP - _BOTTOM)
