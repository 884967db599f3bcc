"""Formats a check's report as a self-contained HTML page: passed trials, each leak with a picture, all trials."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from lengthwise.reports import look
from lengthwise_export.checking.leaks import Leak, OperatorSpread
from lengthwise_export.checking.report import number, one_per_kind, tested_sizes_text, tolerance_text
from lengthwise_export.checking.verdict import Report, TrialResult

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{look}
td.figure {{ text-align: right; }}
tr.moved {{ color: var(--bad); font-weight: 600; }}
svg {{ max-width: none; }}
svg text {{ font-family: var(--mono); font-size: 13px; }}
svg text.summary {{ font-style: italic; opacity: .75; }}
rect.moved {{ fill: var(--bad); }}
rect.still {{ fill: var(--line); fill-opacity: .35; }}
.first {{ font-weight: 700; }}
.verdict {{ text-transform: uppercase; letter-spacing: .05em; }}
.verdict.sound {{ color: var(--good); }}
.verdict.leak {{ color: var(--bad); }}
.verdict.warning {{ color: var(--second); }}
</style>
</head>
<body>
<main>
<h1><span class="verdict {verdict}">{verdict}</span> {title}</h1>
<p>{reason}</p>
{notes}
{right}
{leaks}
{fix}
<section>
<h2>Trials</h2>
{tried}
</section>
</main>
</body>
</html>
"""


def as_page(report: Report, target: str, *, fix: str = "") -> str:
    """The report as one HTML page.

    Args:
        report: The report.
        target: The name of the checked model.
        fix: A section about the mend, as HTML.
    """
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    return _PAGE.format(
        look=look.style(),
        title=html.escape(target),
        verdict=report.verdict,
        reason=html.escape(report.reason),
        notes=f"<ul>{notes}</ul>" if notes else "",
        right=_right(report),
        leaks="\n".join(_section(leak) for leak in report.leaks),
        fix=fix,
        tried=_tried(report),
    )


def _right(report: Report) -> str:
    """The section of passed trials, and of the operators before each leak that do not differ."""
    passed = [outcome for outcome in report.trials if outcome.passed and outcome.raised is None]
    if not passed:
        return ""
    items = [
        f"<b>{len(passed)} of {len(report.trials)} trials</b> moved no answer: "
        + html.escape("; ".join(outcome.name for outcome in one_per_kind(tuple(passed))))
    ]
    for leak in report.leaks:
        before = _before(leak)
        if before:
            items.append(
                f"<b>{len(before)} operators</b> before <code>{html.escape(leak.operator)}</code> give the same output "
                f"at every valid step, with {html.escape(leak.trial)}"
            )
    items.append(html.escape(tested_sizes_text(report)))
    return "<section><h2>Passed</h2><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul></section>"


def _tried(report: Report) -> str:
    """A table with a row for each kind of trial, failed ones first, and a collapsed table of all trials."""
    if not report.trials:
        return "<p>None: the model could not be run.</p>"
    bad = [outcome for outcome in report.trials if not outcome.passed]
    good = [outcome for outcome in report.trials if outcome.passed]
    every = (
        f"<details><summary>All {len(report.trials)} trials</summary>{_table(report.trials)}</details>"
        f"<p>{html.escape(tolerance_text(report.tolerance))}.</p>"
    )
    return _table([*one_per_kind(tuple(bad)), *one_per_kind(tuple(good))]) + every


def _table(outcomes: Sequence[TrialResult]) -> str:
    rows = (
        f"<tr{'' if outcome.passed else ' class=moved'}><td>{html.escape(outcome.name)}</td>"
        f'<td class="figure">{number(outcome.difference)}</td><td>{html.escape(outcome.raised or "")}</td></tr>'
        for outcome in outcomes
    )
    head = "<tr><th>trial</th><th>the answer moves by</th><th>error</th></tr>"
    return f"<table>\n{head}\n" + "\n".join(rows) + "\n</table>"


def _section(leak: Leak) -> str:
    at = leak.place if leak.location is None else str(leak.location)
    place = f"<p><code>{html.escape(at)}</code></p>" if at else ""
    source = "" if leak.location is None else f"<pre>{html.escape(leak.location.source)}</pre>"
    since = (
        "" if leak.cause_at is None else f"<p>Padding stopped being 0 at <code>{html.escape(leak.cause_at)}</code>.</p>"
    )
    return (
        f"<section><h2>{html.escape(leak.operator)}</h2>{place}{source}"
        f"<p>{html.escape(leak.cause.why)}</p>{since}"
        f"<h3>Fix</h3><pre>{html.escape(leak.cause.fix)}</pre>"
        f"<h3>How it spreads: {html.escape(leak.trial)}</h3>{_picture(leak)}</section>"
    )


_WIDTH: Final = 1050
"""Width of a picture in pixels."""
_LABELS: Final = 400
_FIGURES: Final = 80
_ROW: Final = 22
_LONGEST_LABEL: Final = 48
_SUMMARY: Final = '<text class="summary"'
_MAX_BEFORE, _MAX_BEHIND = 6, 24
"""At most this many operators are drawn before the leaking operator and from it on; the others are only counted."""


def _picture(leak: Leak) -> str:
    """The picture of a leak: operators from top to bottom, steps from left to right.

    A darker cell is a larger difference of the operator's output at that step. A vertical line marks the end of the
    sequence; left of it nothing should be coloured. An output without an axis of steps is one long bar.
    """
    if not leak.spread:
        return ""
    steps = max(len(spread.along) for spread in leak.spread)
    cell = (_WIDTH - _LABELS - _FIGURES) / steps
    lines = list(_lines(leak, steps, cell))
    height = len(lines) * _ROW + 28
    end, top = _LABELS + round(leak.length * cell), _ROW * int(lines[0].startswith(_SUMMARY))
    drawn = "\n".join(f'<g transform="translate(0 {index * _ROW})">{line}</g>' for index, line in enumerate(lines))
    return (
        f'<figure><svg width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="Where the leak spreads, operators down, steps along">\n{drawn}\n'
        f'<line x1="{end}" y1="{top}" x2="{end}" y2="{height - 24}" stroke="currentColor" stroke-width="2"/>'
        # Left of the line and below the operators' names there is always room for this text.
        f'<text x="{end}" y="{height - 8}" text-anchor="end">the sequence ends here, after {leak.length} steps</text>'
        "</svg><figcaption>Operators from top to bottom, in the order of execution; steps from left to right; at the "
        "right, the largest difference of the output. Left of the line, and in a bar without steps, nothing should be "
        "coloured.</figcaption></figure>"
    )


def _lines(leak: Leak, steps: int, cell: float) -> Iterator[str]:
    """The lines of the picture; operators without a difference, and those beyond the maximum, are only counted."""
    before = _before(leak)
    behind = leak.spread[len(before) :]
    shown = before[-_MAX_BEFORE:]
    if len(before) > len(shown):
        yield _summary(f"{_operators(len(before) - len(shown))} before: no valid step moved")
    yield from _rows(shown, leak, steps, cell)
    yield from _rows(behind[:_MAX_BEHIND], leak, steps, cell)
    if len(behind) > _MAX_BEHIND:
        yield _summary(f"{_operators(len(behind) - _MAX_BEHIND)} more, up to the answer")


def _rows(spreads: Sequence[OperatorSpread], leak: Leak, steps: int, cell: float) -> Iterator[str]:
    for still, group in itertools.groupby(spreads, key=lambda spread: not any(map(_shade, spread.along))):
        alike = list(group)
        if still and len(alike) > 1:
            names = ", ".join(_name(spread) for spread in alike)
            yield _summary(f"{_operators(len(alike))}: nothing moved ({names})")
        else:
            yield from (_row(spread, leak, steps, cell) for spread in alike)


def _before(leak: Leak) -> tuple[OperatorSpread, ...]:
    """The operators before the leaking one."""
    first = next((place for place, spread in enumerate(leak.spread) if spread.operator == leak.operator), 0)
    return leak.spread[:first]


def _operators(count: int) -> str:
    return f"{count} operator{'s' if count > 1 else ''}"


def _summary(text: str) -> str:
    most = _WIDTH // 8
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    return f'{_SUMMARY} x="0" y="{_ROW - 7}">{html.escape(shown)}</text>'


def _name(spread: OperatorSpread) -> str:
    """The label of an operator: its module and function, or for a function outside a module, the line that calls it."""
    if spread.location is None or not spread.location.source:
        return spread.operator
    if ": " in spread.operator:
        return f"{spread.operator} (line {spread.location.line})"
    return f"{spread.location.line}: {spread.location.source}"


def _row(spread: OperatorSpread, leak: Leak, steps: int, cell: float) -> str:
    name = _name(spread)
    label = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    is_first = spread.operator == leak.operator and spread.location in (leak.location, None)
    first = ' class="first"' if is_first else ""
    tooltip = f"<title>{html.escape(f'{spread.operator}: {name}')}</title>"
    cells = [f'<text x="0" y="{_ROW - 7}"{first}>{tooltip}{html.escape(label)}</text>']
    along = spread.along if len(spread.along) > 1 else spread.along * steps
    place = 0
    for shade, run in itertools.groupby(along, key=_shade):
        length = len(list(run))
        look = f'class="moved" fill-opacity="{shade}"' if shade else 'class="still"'
        x, width = _LABELS + place * cell, length * cell
        cells.append(f'<rect {look} x="{x:.1f}" y="1" width="{width:.1f}" height="{_ROW - 2}"/>')
        place += length
    figure = number(max(spread.along, key=lambda moved: -1.0 if math.isnan(moved) else moved))
    cells.append(f'<text x="{_WIDTH}" y="{_ROW - 7}" text-anchor="end">{figure}</text>')
    return "".join(cells)


def _shade(difference: float) -> float:
    """The opacity of a cell: 0 for differences up to 1e-6, 1 from 1 on; logarithmic between, in eighths."""
    if math.isnan(difference):
        return 0.0
    return round(8 * min(max((math.log10(max(difference, 1e-12)) + 6) / 6, 0.0), 1.0)) / 8
