"""Formats a proposed fix for the terminal: each operator before and after as a unified diff, then the proof."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from lengthwise_export.mending.changes import MendedOperator
from lengthwise_export.mending.fix import FixProposal, operators_text, title, unified

_STYLES = {"-": "red", "+": "green"}


def on_terminal(fix: FixProposal) -> RenderableType:
    """A proposed fix for the terminal. Code is never wrapped: print it without cropping."""
    head = Text.assemble(("mend", "bold green" if fix.mendable else "bold red"), f"  {_headline(fix)}")
    parts: list[RenderableType] = ["", head]
    for change in fix.changes:
        parts += ["", *_changed(change)]
    if fix.min_length > 1:
        parts.append(Text(f"note: the model accepts sequences of {fix.min_length} steps and more"))
    if fix.notice is not None:
        parts.append(Text(f"note: {fix.notice}"))
    if fix.proof is not None:
        raised = fix.proof.raised
        skipped = f"; the original raises alone at {len(raised)} shorter lengths" if raised and fix.proof.holds else ""
        parts += ["", Text.assemble(("proof", "bold"), f"  {fix.proof}{skipped}")]
    if fix.mendable and fix.changes:
        parts.append(Text("`lengthwise export TARGET --mend --out MODELS/NAME` publishes the mended graph"))
    return Group(*parts)


def _headline(fix: FixProposal) -> str:
    if fix.mendable:
        return fix.reason
    place = "" if fix.location is None else f"{fix.location}: "
    operator = "" if fix.operator is None else f"{fix.operator}: "
    return f"this model cannot be mended: {place}{operator}{fix.reason}"


def _changed(change: MendedOperator) -> Iterator[RenderableType]:
    place = "" if change.location is None else f"{change.location}: "
    yield Text(f"{place}{title(change)}", style="bold")
    if change.location is not None and change.location.source:
        yield Text(f" {change.location.line} | {change.location.source}", no_wrap=True, overflow="ignore")
    yield Text.assemble(("  why   ", "bold"), change.cause)
    for line in unified(change):
        yield Text(f"  {line}", style=_STYLES.get(line[:1], ""), no_wrap=True, overflow="ignore")


def summary(fix: FixProposal) -> str:
    """The mend of an export as a line: how many operators, and the proof."""
    return f"mended {operators_text(len(fix.changes))}: {fix.proof}"
