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
"""The text of each verdict and its colour, the worst first; `ignored` is sound but for leaks that are ignored."""
_CHARACTER, _MARGINS = 6.6, 12  # pixels: of Verdana at 11 pixels, and on both sides of a text


def as_badge(reports: Sequence[Report]) -> Markup:
    """The worst verdict of some reports as an SVG picture; of several with the number of models."""
    verdicts = ["ignored" if one.verdict == "sound" and not one.padding_safe else one.verdict for one in reports]
    worst = next(verdict for verdict in _TEXTS if verdict in verdicts)
    text, colour = _TEXTS[worst]
    if len(verdicts) > 1:
        text += f" ({verdicts.count(worst)} of {len(verdicts)})"
    left, right = (round(_CHARACTER * len(part)) + _MARGINS for part in (_LABEL, text))
    title = f"{_LABEL}: {text}"
    return render(_TEMPLATE, label=_LABEL, text=text, title=title, colour=colour, left=left, right=right)
