"""What `check` writes by templates: a report as a self-contained HTML page, a badge, and the pages of the rules.

The page of a report has each leak with a picture, passed trials, and all trials. The *picture* of a leak has a line for
each operator, in order of execution, with a cell for each step: the larger the difference there, the darker its
*shade*. The *leaking* operator is the first that differs. The template calls functions of this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from markupsafe import Markup

from lengthwise.exporter_api.reports import notebook, render
from lengthwise_export.checking.compared_runs import OperatorSpread
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import (
    Report,
    Verdict,
    ignored_text,
    level_text,
    number,
    one_per_kind,
    tested_sizes_text,
    tolerance_text,
)
from lengthwise_export.checking.rule import LeakRule, rules
from lengthwise_export.errors import counted

__all__ = [
    "as_badge",
    "as_markdown",
    "as_page",
    "as_table",
    "notebook",
    "render",
]

_REPORT, _BADGE, _RULE, _RULES = map(
    Path(__file__).with_name, ("report.html", "badge.svg", "rule_page.md", "rule_table.md")
)
_MAX_BEFORE, _MAX_BEHIND = 6, 24  # operators drawn before the leaking one, and from it on


def as_page(report: Report, *more: Report) -> Markup:
    """The report as one HTML page. Of several reports, the page begins with a table of them."""
    return render(
        _REPORT,
        title="lengthwise check" if more else report.target,
        reports=(report, *more),
        rules=rules(),
        operators_before=_operators_before,
        label=_label,
        largest_difference=_largest_difference,
        picture_lines=_picture_lines,
        shade_runs=_shade_runs,
        ignored_text=ignored_text,
        level_text=level_text,
        number=number,
        one_per_kind=one_per_kind,
        tested_sizes_text=tested_sizes_text,
        tolerance_text=tolerance_text,
    )


def _picture_lines(leak: Leak) -> Iterator[OperatorSpread | str]:
    """Yields the lines of the picture: an operator, or a text in the place of several.

    The texts count operators without a difference, and those that are more than are drawn.
    """
    operators_before = _operators_before(leak)
    operators_from_leak = leak.spread[len(operators_before) :]
    shown_before = operators_before[-_MAX_BEFORE:]
    if len(operators_before) > len(shown_before):
        yield f"{counted(len(operators_before) - len(shown_before), 'operator')} before: no valid step moved"
    for spreads in (shown_before, operators_from_leak[:_MAX_BEHIND]):
        for is_unmoved, group in itertools.groupby(spreads, key=lambda spread: not any(map(_shade, spread.along))):
            operators = list(group)
            if is_unmoved and len(operators) > 1:
                yield f"{counted(len(operators), 'operator')}: nothing moved ({', '.join(map(_label, operators))})"
            else:
                yield from operators
    if len(operators_from_leak) > _MAX_BEHIND:
        yield f"{counted(len(operators_from_leak) - _MAX_BEHIND, 'operator')} more, up to the answer"


def _operators_before(leak: Leak) -> tuple[OperatorSpread, ...]:
    """The operators that ran before the leaking one."""
    first = next((index for index, spread in enumerate(leak.spread) if spread.operator == leak.operator), 0)
    return leak.spread[:first]


def _label(spread: OperatorSpread) -> str:
    """The label of an operator: its layer and function, or the line that calls it if it is outside a layer."""
    if spread.location is None or not spread.location.source:
        return spread.operator
    if ": " in spread.operator:
        return f"{spread.operator} (line {spread.location.line})"
    return f"{spread.location.line}: {spread.location.source}"


def _shade_runs(spread: OperatorSpread) -> Iterator[tuple[float, int, int]]:
    """Yields for each run of neighbouring steps with one shade: the shade, its first step and the number of steps."""
    begin = 0
    for shade, run in itertools.groupby(spread.along, key=_shade):
        count = len(list(run))
        yield shade, begin, count
        begin += count


def _largest_difference(spread: OperatorSpread) -> float:
    """The largest difference along the steps; NaN only if all are NaN."""
    return max(spread.along, key=lambda difference: -1.0 if math.isnan(difference) else difference)


def _shade(difference: float) -> float:
    """The opacity of a cell, from 0 to 1: 0 for differences up to 1e-6 and NaN, 1 from 1 on, logarithmic between.

    It is rounded to eighths, so that neighbouring steps often have the same.
    """
    if math.isnan(difference):
        return 0.0
    return round(8 * min(max((math.log10(max(difference, 1e-12)) + 6) / 6, 0.0), 1.0)) / 8


# Of the badge:
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
    return render(_BADGE, label=_LABEL, text=text, colour=colour, left=label_width, right=text_width)


def as_markdown(rule: LeakRule) -> str:
    """The page of a rule, for `check --explain`, SARIF and `docs/rules/`: its cause, its cure, and examples."""
    return str(render(_RULE, rule=rule))


def as_table() -> str:
    """The tables of all rules in Markdown: one table for each hundred of the codes."""
    return str(render(_RULES, rules=rules()))
