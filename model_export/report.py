"""A check's report as people and programs read it: on a terminal, as JSON, and as a page with a picture of the leak."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from model_export.check import Outcome, Report, Verdict
from model_export.frames import shown
from model_export.leaks import Leak, Spread
from model_export.trials import CHANGES
from service.manifest import Manifest

_STYLES: Final[dict[Verdict, str]] = {
    "sound": "bold green",
    "leak": "bold red",
    "warning": "bold yellow",
    "uncheckable": "bold magenta",
}


def as_json(report: Report) -> dict[str, Any]:
    """A report in the form that DESIGN gives `check --json`; a difference that is not finite is null."""
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "leaks": [
            {
                "operator": leak.operator,
                "kind": leak.kind,
                "file": None if leak.place is None else shown(leak.place.file),
                "line": None if leak.place is None else leak.place.line,
                "source": None if leak.place is None else leak.place.source,
                "cause_at": leak.cause_at,
                "cause": leak.cause.why,
                "fix": leak.cause.fix,
                "difference": _finite(leak.difference),
                "trial": leak.trial,
            }
            for leak in report.leaks
        ],
        "trials": [
            {
                "name": outcome.name,
                "difference": _finite(outcome.difference),
                "passed": outcome.passed,
                "raised": outcome.raised,
            }
            for outcome in report.trials
        ],
        "notes": list(report.notes),
        "max_length": report.max_length,
    }


def on_terminal(report: Report, target: str, *, served: str | None = None, verbose: bool = False) -> RenderableType:
    """A report for people: the verdict, each leak with its line and how to mend it, then what was tried.

    Code is never wrapped: print it without cropping.

    Args:
        report: What was found.
        target: Of what.
        served: What is promised of the widths that the service pads to, where that is known.
        verbose: Whether every trial of a sound model has a row, and not only every kind.
    """
    head = Text.assemble((report.verdict, _STYLES[report.verdict]), f"  {target}: {report.reason}")
    parts: list[RenderableType] = [head]
    for leak in report.leaks:
        parts += ["", *_told(leak)]
    parts += [Text(f"note: {note}") for note in report.notes]
    if report.trials:
        told = report.trials if verbose or report.verdict != "sound" else tuple(_kinds(report.trials))
        parts += ["", _table(told)]
        if any(outcome.passed and outcome.difference for outcome in report.trials):
            parts.append(Text(f"{_rounding(report.tolerance)}{f'; {served}' if served else ''}."))
    return Group(*parts)


def promised(manifest: Manifest) -> str | None:
    """What a manifest promises of the widths that the service pads to; None where it promises nothing."""
    if not manifest.promises:
        return None
    multiple = manifest.width_multiple
    widths = "at every width" if multiple == 1 else f"where the width is a multiple of {multiple}, as when served"
    if manifest.max_batch_rows == 1:
        widths = "as each sequence is run by itself and without padding"
    kept = "; ".join(
        f"{'the same bits' if promise.bits else f'answers within {promise.tolerance:.2g}'} on {promise.provider}"
        for promise in manifest.promises
    )
    return f"{widths}, the manifest promises {kept}"


def _rounding(tolerance: float) -> str:
    return f"Up to {tolerance:.2g} is rounding, as another width or number of rows sums in another order"


def _kinds(outcomes: tuple[Outcome, ...]) -> Iterator[Outcome]:
    """One outcome for each kind of trial: the largest difference, under the first one's name."""
    for _, group in itertools.groupby(sorted(outcomes, key=_by_kind), key=_by_kind):
        alike = list(group)
        differences = [outcome.difference for outcome in alike if outcome.difference is not None]
        more = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
        yield replace(alike[0], name=alike[0].name + more, difference=max(differences, default=None))


def _by_kind(outcome: Outcome) -> int:
    return CHANGES.index(outcome.change)


def _told(leak: Leak) -> Iterator[RenderableType]:
    place = "" if leak.place is None else f"{leak.place}: "
    yield Text.assemble(
        (f"{place}{leak.operator}", "bold"), f"  its output moves by {_number(leak.difference)} with {leak.trial}"
    )
    if leak.place is not None and leak.place.source:
        number = str(leak.place.line)
        yield Text(f" {number} | {leak.place.source}", no_wrap=True, overflow="ignore")
    yield Text.assemble(("  why   ", "bold"), leak.cause.why)
    if leak.cause_at is not None:
        yield Text.assemble(("  since ", "bold"), f"padding stopped being 0 at {leak.cause_at}")
    yield Text("  mend", style="bold")
    for line in Syntax("", "python", background_color="default").highlight(leak.cause.fix).split():
        yield Text.assemble(" " * 8, line, no_wrap=True, overflow="ignore")


def _table(outcomes: tuple[Outcome, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tried")
    table.add_column("the answer moves by", justify="right")
    table.add_column("")
    for outcome in outcomes:
        said = "" if outcome.passed else ("moved" if outcome.raised is None else "raised")
        table.add_row(outcome.name, _number(outcome.difference), said, style=None if outcome.passed else "red")
    return table


def _number(difference: float | None) -> str:
    if difference is None:
        return "-"
    return f"{difference:.2g}" if math.isfinite(difference) else "not finite"


def _finite(difference: float | None) -> float | None:
    return difference if difference is not None and math.isfinite(difference) else None


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --moved: 200, 30, 50; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ overflow-wrap: anywhere; }}
pre {{ background: #8882; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }}
code, pre, svg text {{ font-family: ui-monospace, monospace; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .15rem 1.5rem .15rem 0; }}
td.figure {{ text-align: right; }}
tr.moved {{ color: rgb(var(--moved)); font-weight: 600; }}
section {{ border-top: 1px solid var(--line); margin-top: 2rem; }}
figure {{ margin: 1rem 0; overflow-x: auto; }}
svg {{ max-width: none; }}
svg text {{ font-size: 11px; fill: currentColor; }}
rect.moved {{ fill: rgb(var(--moved)); }}
rect.still {{ fill: #8881; }}
.first {{ font-weight: 700; }}
.verdict {{ text-transform: uppercase; letter-spacing: .05em; }}
</style>
</head>
<body>
<h1><span class="verdict">{verdict}</span> {title}</h1>
<p>{reason}</p>
{leaks}
<section>
<h2>What was tried</h2>
<table>
<tr><th>trial</th><th>the answer moves by</th><th></th></tr>
{trials}
</table>
{notes}
</section>
</body>
</html>
"""


def as_page(report: Report, target: str) -> str:
    """A report as one HTML page that needs nothing else."""
    rows = (
        f"<tr{'' if outcome.passed else ' class=moved'}><td>{html.escape(outcome.name)}</td>"
        f'<td class="figure">{_number(outcome.difference)}</td><td>{html.escape(outcome.raised or "")}</td></tr>'
        for outcome in report.trials
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    return _PAGE.format(
        title=html.escape(target),
        verdict=report.verdict,
        reason=html.escape(report.reason),
        leaks="\n".join(_section(leak) for leak in report.leaks),
        trials="\n".join(rows),
        notes=f"<ul>{notes}</ul>" if notes else "",
    )


def _section(leak: Leak) -> str:
    place = "" if leak.place is None else f"<p><code>{html.escape(str(leak.place))}</code></p>"
    source = "" if leak.place is None else f"<pre>{html.escape(leak.place.source)}</pre>"
    since = (
        "" if leak.cause_at is None else f"<p>Padding stopped being 0 at <code>{html.escape(leak.cause_at)}</code>.</p>"
    )
    return (
        f"<section><h2>{html.escape(leak.operator)}</h2>{place}{source}"
        f"<p>{html.escape(leak.cause.why)}</p>{since}"
        f"<h3>Mend it</h3><pre>{html.escape(leak.cause.fix)}</pre>"
        f"<h3>How it spreads: {html.escape(leak.trial)}</h3>{_picture(leak)}</section>"
    )


_CELL: Final = 12
_LABELS: Final = 320


def _picture(leak: Leak) -> str:
    """Steps along, operators down: the darker, the further an operator's output moved at that step.

    The line is where the row ends; what is coloured before it should not be. A value without steps is one long bar.
    """
    if not leak.spread:
        return ""
    steps = max(len(spread.along) for spread in leak.spread)
    width, height = _LABELS + steps * _CELL + 2, len(leak.spread) * _CELL + 24
    end = _LABELS + leak.length * _CELL
    lines = "\n".join(_row(spread, index, steps, leak.operator) for index, spread in enumerate(leak.spread))
    return (
        f'<figure><svg width="{width}" height="{height}" role="img" '
        f'aria-label="Where the leak spreads, operators down, steps along">\n{lines}\n'
        f'<line x1="{end}" y1="0" x2="{end}" y2="{height - 20}" stroke="currentColor" stroke-width="2"/>'
        # Before the line, below the operators' names: there is always room for it.
        f'<text x="{end}" y="{height - 6}" text-anchor="end">the row ends here, after {leak.length} steps</text>'
        "</svg><figcaption>Operators from top to bottom, steps from left to right. Left of the line, and in a bar "
        "without steps, nothing should be coloured.</figcaption></figure>"
    )


def _row(spread: Spread, index: int, steps: int, leaking: str) -> str:
    y = index * _CELL
    name = html.escape(spread.operator if len(spread.operator) <= 48 else f"…{spread.operator[-47:]}")
    first = ' class="first"' if spread.operator == leaking else ""
    cells = [f'<text x="0" y="{y + _CELL - 2}"{first}>{name}</text>']
    along = spread.along if len(spread.along) > 1 else spread.along * steps
    place = 0
    for shade, run in itertools.groupby(along, key=_shade):
        length = len(list(run))
        look = f'class="moved" fill-opacity="{shade}"' if shade else 'class="still"'
        x, width = _LABELS + place * _CELL, length * _CELL
        cells.append(f'<rect {look} x="{x}" y="{y}" width="{width}" height="{_CELL - 1}"/>')
        place += length
    return "".join(cells)


def _shade(difference: float) -> float:
    """From 0 (1e-6 and less) to 1 (1 and more, or not finite), by orders of magnitude, in eighths."""
    if math.isnan(difference):
        return 0.0
    return round(8 * min(max((math.log10(max(difference, 1e-12)) + 6) / 6, 0.0), 1.0)) / 8
