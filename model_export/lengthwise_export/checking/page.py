"""Formats a check's report as a self-contained HTML page: each leak with a picture, passed trials, all trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from lengthwise.reports.page import Html, bullets, element, joined, page, section, table
from lengthwise_export.checking import report as reports
from lengthwise_export.checking.leaks import Leak, OperatorSpread
from lengthwise_export.checking.report import Report, TrialResult, number, one_per_kind

_STYLE: Final = """
td b { color: var(--bad); }
svg text { font-family: var(--mono); font-size: 13px; }
svg text.summary { font-style: italic; opacity: .75; }
rect.moved { fill: var(--bad); }
rect.still { fill: var(--line); fill-opacity: .35; }
.first { font-weight: 700; }
.verdict { text-transform: uppercase; letter-spacing: .05em; }
.verdict.sound { color: var(--good); }
.verdict.leak { color: var(--bad); }
.verdict.warning { color: var(--second); }
"""


def as_page(report: Report) -> str:
    """The report as one HTML page."""
    verdict = element("span", report.verdict, class_=f"verdict {report.verdict}")
    return page(
        report.target,
        element("p", report.reason),
        bullets(report.notes),
        *map(_section, report.leaks),
        "" if report.fix is None else report.fix.as_section(),
        _passed(report),
        section("Trials", *_trials(report)),
        style=_STYLE,
        heading=joined(verdict, f" {report.target}"),
    )


def _passed(report: Report) -> Html:
    """The section of passed trials, and of the operators before each leak that do not differ."""
    passed = [outcome for outcome in report.trials if outcome.passed and outcome.raised is None]
    if not passed:
        return Html()
    names = "; ".join(outcome.name for outcome in one_per_kind(passed))
    items = [joined(element("b", f"{len(passed)} of {len(report.trials)} trials"), f" moved no answer: {names}")]
    for leak in report.leaks:
        if before := _before(leak):
            operators, where = element("b", f"{len(before)} operators"), element("code", leak.operator)
            same = " give the same output at every valid step, with "
            items.append(joined(operators, " before ", where, same, leak.trial))
    return section("Passed", bullets([*items, reports.tested_sizes_text(report)]))


def _trials(report: Report) -> Iterator[Html]:
    """A table with a row for each kind of trial, failed ones first, and a collapsed table of all trials."""
    if not report.trials:
        yield element("p", "None: the model could not be run.")
        return
    groups = ([each for each in report.trials if each.passed is passed] for passed in (False, True))
    yield _table([outcome for group in groups for outcome in one_per_kind(group)])
    yield element("details", element("summary", f"All {len(report.trials)} trials"), _table(report.trials))
    yield element("p", f"{reports.tolerance_text(report.tolerance)}.")


def _table(outcomes: Sequence[TrialResult]) -> Html:
    names = (outcome.name if outcome.passed else element("b", outcome.name) for outcome in outcomes)
    rows = ((name, number(one.difference), one.raised or "") for name, one in zip(names, outcomes, strict=True))
    return table(rows, ("trial", "the answer moves by", "error"))


def _section(leak: Leak) -> Html:
    at = leak.place if leak.location is None else str(leak.location)
    parts = [element("p", element("code", at))] if at else []
    if leak.location is not None:
        parts.append(element("pre", leak.location.source))
    parts.append(element("p", leak.cause.why))
    if leak.cause_at is not None:
        parts.append(element("p", "Padding stopped being 0 at ", element("code", leak.cause_at), "."))
    parts += [element("h3", "Fix"), element("pre", leak.cause.fix)]
    parts += [element("h3", f"How it spreads: {leak.trial}"), _picture(leak)]
    return section(leak.operator, *parts)


_WIDTH: Final = 1050  # width of a picture in pixels
_LABELS: Final = 400
_FIGURES: Final = 80
_ROW: Final = 22
_LONGEST_LABEL: Final = 48
_MAX_BEFORE, _MAX_BEHIND = 6, 24  # Operators drawn before the leaking one, and from it on


def _picture(leak: Leak) -> Html:
    """The picture of a leak: operators down, steps along; a line marks the end, and darker cells differ more."""
    if not leak.spread:
        return Html()
    cell = (_WIDTH - _LABELS - _FIGURES) / max(len(spread.along) for spread in leak.spread)
    lines = [
        element("g", line, transform=f"translate(0 {place * _ROW})") for place, line in enumerate(_lines(leak, cell))
    ]
    height, end = len(lines) * _ROW + 28, _LABELS + round(leak.length * cell)
    top = _ROW * ('class="summary"' in lines[0])  # the line does not cross a first line of text
    drawn = element(
        "svg",
        *lines,
        element("line", x1=end, y1=top, x2=end, y2=height - 24, stroke="currentColor", stroke_width=2),
        # Left of the line and below the operators' names there is always room for this text.
        element("text", f"the sequence ends here, after {leak.length} steps", x=end, y=height - 8, text_anchor="end"),
        width=_WIDTH,
        height=height,
        role="img",
        aria_label="Where the leak spreads, operators down, steps along",
    )
    caption = (
        "Operators from top to bottom, in the order of execution; steps from left to right; at the right, the largest "
        "difference of the output. Left of the line, and in a bar without steps, nothing should be coloured."
    )
    return element("figure", drawn, element("figcaption", caption))


def _lines(leak: Leak, cell: float) -> Iterator[Html]:
    """The lines of the picture; operators without a difference, and those beyond the maximum, are only counted."""
    before = _before(leak)
    behind = leak.spread[len(before) :]
    shown = before[-_MAX_BEFORE:]
    if len(before) > len(shown):
        yield _summary(f"{_operators(len(before) - len(shown))} before: no valid step moved")
    for spreads in (shown, behind[:_MAX_BEHIND]):
        for still, group in itertools.groupby(spreads, key=lambda spread: not any(map(_shade, spread.along))):
            alike = list(group)
            if still and len(alike) > 1:
                yield _summary(f"{_operators(len(alike))}: nothing moved ({', '.join(map(_name, alike))})")
            else:
                yield from (_row(spread, leak, cell) for spread in alike)
    if len(behind) > _MAX_BEHIND:
        yield _summary(f"{_operators(len(behind) - _MAX_BEHIND)} more, up to the answer")


def _before(leak: Leak) -> tuple[OperatorSpread, ...]:
    """The operators before the leaking one."""
    first = next((place for place, spread in enumerate(leak.spread) if spread.operator == leak.operator), 0)
    return leak.spread[:first]


def _operators(count: int) -> str:
    return f"{count} operator{'s' if count > 1 else ''}"


def _summary(text: str) -> Html:
    return element("text", _shortened(text, _WIDTH // 8), class_="summary", x=0, y=_ROW - 7)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _name(spread: OperatorSpread) -> str:
    """The label of an operator: its module and function, or for a function outside a module, the line that calls it."""
    if spread.location is None or not spread.location.source:
        return spread.operator
    if ": " in spread.operator:
        return f"{spread.operator} (line {spread.location.line})"
    return f"{spread.location.line}: {spread.location.source}"


def _row(spread: OperatorSpread, leak: Leak, cell: float) -> Html:
    name = _name(spread)
    is_first = spread.operator == leak.operator and spread.location in (leak.location, None)
    tooltip = element("title", f"{spread.operator}: {name}")
    label = _shortened(name, _LONGEST_LABEL)
    cells = [element("text", tooltip, label, x=0, y=_ROW - 7, class_="first" if is_first else None)]
    width = cell if len(spread.along) > 1 else _WIDTH - _LABELS - _FIGURES
    place = 0
    for shade, run in itertools.groupby(spread.along, key=_shade):
        length = len(list(run))
        at = {"x": f"{_LABELS + place * width:.1f}", "y": 1, "width": f"{length * width:.1f}", "height": _ROW - 2}
        cells.append(element("rect", class_="moved" if shade else "still", fill_opacity=shade or None, **at))
        place += length
    figure = number(max(spread.along, key=lambda moved: -1.0 if math.isnan(moved) else moved))
    cells.append(element("text", figure, x=_WIDTH, y=_ROW - 7, text_anchor="end"))
    return joined(*cells)


def _shade(difference: float) -> float:
    """The opacity of a cell: 0 for differences up to 1e-6, 1 from 1 on; logarithmic between, in eighths."""
    if math.isnan(difference):
        return 0.0
    return round(8 * min(max((math.log10(max(difference, 1e-12)) + 6) / 6, 0.0), 1.0)) / 8
