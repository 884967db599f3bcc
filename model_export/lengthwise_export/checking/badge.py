"""Draws the verdict of a check as a badge: an SVG picture of one line that loads nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from markupsafe import Markup

from lengthwise.reports.templates import render
from lengthwise_export.checking.report import Report, Verdict

_TEMPLATE: Final = Path(__file__).with_name("badge.svg")
_LABEL: Final = "lengthwise"
_TEXTS: Final[dict[Verdict | Literal["ignored"], tuple[str, str]]] = {
    "leak": ("padding leaks", "#b3261e"),
    "ignored": ("padding leaks, ignored", "#8a5a00"),
    "uncheckable": ("not checked", "#5f6368"),
    "warning": ("padding: warning", "#8a5a00"),
    "sound": ("padding-safe", "#1b6e3c"),
}
"""The text of each verdict and its colour, the worst first; `ignored` is sound except for leaks that are ignored."""
_CHARACTER, _MARGINS = 6.6, 12  # in pixels: a character of Verdana at 11 pixels, and both margins of a text


def as_badge(reports: Sequence[Report]) -> Markup:
    """The worst verdict of some reports as an SVG picture; of several reports, with the number that have it."""
    verdicts = [
        "ignored" if report.verdict == "sound" and not report.padding_safe else report.verdict for report in reports
    ]
    worst = next(verdict for verdict in _TEXTS if verdict in verdicts)
    text, colour = _TEXTS[worst]
    if len(verdicts) > 1:
        text += f" ({verdicts.count(worst)} of {len(verdicts)})"
    label_width, text_width = (round(_CHARACTER * len(part)) + _MARGINS for part in (_LABEL, text))
    return render(_TEMPLATE, label=_LABEL, text=text, colour=colour, left=label_width, right=text_width)
