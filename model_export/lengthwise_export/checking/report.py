"""Formats a check's report for the terminal and as JSON. `page` formats it as HTML."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from lengthwise.runtime.manifest import Manifest
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.trials import CHANGES
from lengthwise_export.checking.verdict import Report, TrialResult, Verdict, as_ranges
from lengthwise_export.tracing.source_lines import location_as_json

_STYLES: Final[dict[Verdict, str]] = {
    "sound": "bold green",
    "leak": "bold red",
    "warning": "bold yellow",
    "uncheckable": "bold magenta",
}


def as_json(report: Report) -> dict[str, Any]:
    """The output of `check --json`. A difference that is not finite becomes null."""
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "leaks": [
            {
                "operator": leak.operator,
                "kind": leak.kind,
                "place": leak.place or None,
                **location_as_json(leak.location),
                "cause_at": leak.cause_at,
                "cause": leak.cause.why,
                "fix": leak.cause.fix,
                "difference": finite(leak.difference),
                "trial": leak.trial,
            }
            for leak in report.leaks
        ],
        "trials": [
            {
                "name": outcome.name,
                "difference": finite(outcome.difference),
                "passed": outcome.passed,
                "raised": outcome.raised,
            }
            for outcome in report.trials
        ],
        "notes": list(report.notes),
        "min_length": report.min_length,
        "max_length": report.max_length,
        "ran": {
            "rows": list(report.ran.rows),
            "widths": list(report.ran.widths),
            "lengths": list(report.ran.lengths),
        },
    }


def on_terminal(report: Report, target: str, *, served: str | None = None) -> RenderableType:
    """A report for the terminal: the verdict, a table of the trials, and at the end each leak with its line and a fix.

    Code is never wrapped: print it without cropping.
    """
    head = Text.assemble((report.verdict, _STYLES[report.verdict]), f"  {target}: {report.reason}")
    parts: list[RenderableType] = [head]
    if report.ran.rows:
        parts.append(Text(tested_sizes_text(report)))
    if report.trials:
        parts += ["", _table(tuple(one_per_kind(report.trials)))]
        if any(outcome.passed and outcome.difference for outcome in report.trials):
            parts.append(Text(f"{tolerance_text(report.tolerance)}{f'; {served}' if served else ''}."))
    parts += [Text(f"note: {note}") for note in report.notes]
    for leak in report.leaks:  # last, where a terminal shows them
        parts += ["", *_told(leak)]
    return Group(*parts)


def promise_text(manifest: Manifest) -> str | None:
    """The promise of a manifest for the widths that the service uses; None if it has none."""
    if not manifest.promises:
        return None
    multiple = manifest.width_multiple
    widths = "at every width" if multiple == 1 else f"where the width is a multiple of {multiple}, as when served"
    if manifest.max_batch_rows == 1:
        widths = "as each sequence is run by itself and without padding"
    promises = "; ".join(
        f"{'the same bits' if promise.bits else f'answers within {promise.tolerance:.2g}'} on {promise.provider}"
        for promise in manifest.promises
    )
    return f"{widths}, the manifest promises {promises}"


def tested_sizes_text(report: Report) -> str:
    """A sentence with the sizes of the batches that ran."""
    rows, widths, lengths = (as_ranges(sizes) for sizes in (report.ran.rows, report.ran.widths, report.ran.lengths))
    return f"ran: {rows} rows, widths of {widths}, sequences of {lengths} steps"


def tolerance_text(tolerance: float) -> str:
    """A sentence with the tolerance."""
    return f"Up to {tolerance:.2g} is rounding: another width or number of rows changes the order of sums"


def one_per_kind(outcomes: tuple[TrialResult, ...]) -> Iterator[TrialResult]:
    """One result for each kind of change: a trial that did not hold, or its first, with the largest difference."""
    for _, group in itertools.groupby(sorted(outcomes, key=_by_kind), key=_by_kind):
        alike = list(group)
        differences = [outcome.difference for outcome in alike if outcome.difference is not None]
        moved = [outcome for outcome in alike if not outcome.passed]
        first = (moved or alike)[0]
        more = f", and {len(alike) - 1} more" if len(alike) > 1 else ""
        if moved and len(alike) > 1:
            more += f" ({len(moved)} of {len(alike)} did not hold)"
        yield replace(first, name=first.name + more, difference=max(differences, default=None))


def _by_kind(outcome: TrialResult) -> int:
    return CHANGES.index(outcome.change)


def _told(leak: Leak) -> Iterator[RenderableType]:
    place = "" if leak.location is None else f"{leak.location}: "
    yield Text.assemble(
        (f"{place}{leak.operator}", "bold"), f"  its output {_moves(leak.difference)} with {leak.trial}"
    )
    if leak.location is not None and leak.location.source:
        yield Text(f" {leak.location.line} | {leak.location.source}", no_wrap=True, overflow="ignore")
    told = Table.grid(padding=(0, 1))  # so that a wrapped sentence stays behind its word
    for word, text in (
        ("place", leak.place),
        ("why", leak.cause.why),
        ("since", "" if leak.cause_at is None else f"padding stopped being 0 at {leak.cause_at}"),
    ):
        if text:
            told.add_row(Text(f"  {word:<5}", style="bold"), Text(text))
    yield told
    yield Text("  fix", style="bold")
    for line in Syntax("", "python", background_color="default").highlight(leak.cause.fix).split():
        yield Text.assemble(" " * 8, line, no_wrap=True, overflow="ignore")


def _table(outcomes: tuple[TrialResult, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("trial")
    table.add_column("the answer moves by", justify="right")
    table.add_column("")
    for outcome in outcomes:
        shown_as = "" if outcome.passed else ("moved" if outcome.raised is None else "raised")
        table.add_row(outcome.name, number(outcome.difference), shown_as, style=None if outcome.passed else "red")
    return table


def _moves(difference: float) -> str:
    return f"moves by {number(difference)}" if math.isfinite(difference) else "is not finite"


def number(difference: float | None) -> str:
    """A difference as text."""
    if difference is None:
        return "-"
    return f"{difference:.2g}" if math.isfinite(difference) else "not finite"


def finite(difference: float | None) -> float | None:
    """A difference for JSON, which has no other numbers than finite ones."""
    return difference if difference is not None and math.isfinite(difference) else None
