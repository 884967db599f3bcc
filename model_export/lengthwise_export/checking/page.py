"""Formats a check's report as a self-contained HTML page: each leak with a picture, passed trials, all trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from markupsafe import Markup

from lengthwise.reports.templates import render
from lengthwise.wrong_values import counted
from lengthwise_export.checking.leaks import Leak, OperatorSpread
from lengthwise_export.checking.report import (
    Report,
    ignored_text,
    level_text,
    number,
    one_per_kind,
    tested_sizes_text,
    tolerance_text,
)
from lengthwise_export.checking.rule import rules

_TEMPLATE: Final = Path(__file__).with_name("report.html")
_MAX_BEFORE, _MAX_BEHIND = 6, 24  # Operators drawn before the leaking one, and from it on


def as_page(report: Report, *more: Report) -> Markup:
    """The report as one HTML page; of several, a table of them, and each below it."""
    helpers: list[Callable[..., object]] = [_before, _label, _largest, _lines, _runs, ignored_text, level_text, number]
    helpers += [one_per_kind, tested_sizes_text, tolerance_text]
    functions = {helper.__name__.lstrip("_"): helper for helper in helpers}
    title = "lengthwise check" if more else report.target
    return render(_TEMPLATE, title=title, reports=(report, *more), rules=rules(), **functions)


def _lines(leak: Leak) -> Iterator[OperatorSpread | str]:
    """The lines of the picture; operators without a difference, and those beyond the maximum, are only counted."""
    before = _before(leak)
    behind = leak.spread[len(before) :]
    shown = before[-_MAX_BEFORE:]
    if len(before) > len(shown):
        yield f"{counted(len(before) - len(shown), 'operator')} before: no valid step moved"
    for spreads in (shown, behind[:_MAX_BEHIND]):
        for still, group in itertools.groupby(spreads, key=lambda spread: not any(map(_shade, spread.along))):
            alike = list(group)
            if still and len(alike) > 1:
                yield f"{counted(len(alike), 'operator')}: nothing moved ({', '.join(map(_label, alike))})"
            else:
                yield from alike
    if len(behind) > _MAX_BEHIND:
        yield f"{counted(len(behind) - _MAX_BEHIND, 'operator')} more, up to the answer"


def _before(leak: Leak) -> tuple[OperatorSpread, ...]:
    """The operators before the leaking one."""
    first = next((index for index, spread in enumerate(leak.spread) if spread.operator == leak.operator), 0)
    return leak.spread[:first]


def _label(spread: OperatorSpread) -> str:
    """The label of an operator: its module and function, or for a function outside a module, the line that calls it."""
    if spread.location is None or not spread.location.source:
        return spread.operator
    if ": " in spread.operator:
        return f"{spread.operator} (line {spread.location.line})"
    return f"{spread.location.line}: {spread.location.source}"


def _runs(spread: OperatorSpread) -> Iterator[tuple[float, int, int]]:
    """Each run of steps of one shade: the shade, its first step and the number of steps."""
    begin = 0
    for shade, run in itertools.groupby(spread.along, key=_shade):
        count = len(list(run))
        yield shade, begin, count
        begin += count


def _largest(spread: OperatorSpread) -> float:
    return max(spread.along, key=lambda moved: -1.0 if math.isnan(moved) else moved)


def _shade(difference: float) -> float:
    """The opacity of a cell: 0 for differences up to 1e-6, 1 from 1 on; logarithmic between, in eighths."""
    if math.isnan(difference):
        return 0.0
    return round(8 * min(max((math.log10(max(difference, 1e-12)) + 6) / 6, 0.0), 1.0)) / 8
