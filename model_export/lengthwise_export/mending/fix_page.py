"""Formats a proposed fix as a part of the HTML report: operators before and after, and a picture of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lengthwise.reports.chart import Chart
from lengthwise.reports.page import Html, element, joined, section
from lengthwise_export.mending.changes import MendedOperator
from lengthwise_export.mending.curve import CANDIDATES, PaddingCurve
from lengthwise_export.mending.fix import FixProposal, title, unified

_MARKS: Final = (0.0, 0.5, 1.0, 1.5, 2.0)
_COLORS: Final = {"-": "var(--bad)", "+": "var(--good)"}


def as_section(fix: FixProposal) -> Html:
    """The section of the page: what the mend changes, the proof, and an answer against padding."""
    operator = "" if fix.operator is None else joined(element("code", fix.operator), ": ")
    parts: list[object] = [element("p", operator, fix.reason)]
    if fix.curve is not None:
        parts.append(_picture(fix.curve))
    if fix.proof is not None:
        parts += [element("h3", "Proof"), element("p", fix.proof)]
    parts += map(_change, fix.changes)
    return section("Mend" if fix.mendable else "This model cannot be mended", *parts)


def _change(change: MendedOperator) -> Html:
    at = change.location
    place = () if at is None else (element("p", element("code", at)), element("pre", at.source))
    colored = ((line, _COLORS.get(line[:1])) for line in unified(change))
    spans = (line if color is None else element("span", line, style=f"color: {color}") for line, color in colored)
    lines = (joined(each, "\n") for each in spans)
    return joined(element("h3", title(change)), *place, element("p", change.cause), element("pre", *lines))


def _picture(curve: PaddingCurve) -> Html:
    """The probability of a class against the padding: the original as a line, the mended model as a dashed line."""
    last = curve.shares[-1] or 1.0
    low, high = _range([*curve.before, *curve.after])
    marks = [(mark / last, f"{mark:.0%}") for mark in _MARKS if mark <= curve.shares[-1]]
    levels = [(part, f"{low + part * (high - low):.2f}") for part in (0.0, 0.5, 1.0)]
    chart = Chart(610, 196, ("padding, as a share of the sequence", marks), ("probability", levels))
    for kind, values, color, dashes in (
        ("before", curve.before, "var(--bad)", None),
        ("after", curve.after, "var(--good)", "7 4"),
    ):
        places = zip(curve.shares, values, strict=True)
        points = [(share / last, (value - low) / (high - low)) for share, value in places]
        chart.line(points, color, class_=kind, stroke_dasharray=dashes)
    apart = max(abs(value - curve.before[0]) for value in curve.before)
    mended = max(abs(value - curve.after[0]) for value in curve.after)
    return chart.figure(
        "The probability of a class against the padding, before and after",
        f"The probability of the class of one sequence of {curve.length} steps, with more and more zeros behind it. "
        f"Solid: the original, which moves by up to {apart:.2g}. Dashed: the mended model, which moves by up to "
        f"{mended:.2g}. The sequence is the one of {CANDIDATES} random ones that moves most.",
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value of the picture: at least 0.1 around the curves, within 0 to 1."""
    middle, height = (min(values) + max(values)) / 2, max(1.2 * (max(values) - min(values)), 0.1)
    low = min(max(middle - height / 2, 0.0), max(1 - height, 0.0))
    return low, min(low + height, 1.0)
