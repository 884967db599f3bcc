"""What `check --suggest` proposes: the operators that a mend changes, the proof, and an answer against padding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lengthwise_export.checking.verdict import Verdict
from lengthwise_export.mending.changes import MendedOperator
from lengthwise_export.mending.curve import PaddingCurve
from lengthwise_export.mending.proof import MendProof
from lengthwise_export.tracing.source_lines import CodeLocation, location_as_json


@dataclass(frozen=True, slots=True)
class FixProposal:
    """What a mend would change in a target, or why it cannot be mended."""

    mendable: bool  # Whether the target is sound, or would be after the mend
    reason: str
    operator: str | None = None  # The operator that cannot be mended; None if it is not one operator
    location: CodeLocation | None = None
    changes: tuple[MendedOperator, ...] = ()  # The operators that the mend changes, in the order of execution
    min_length: int = 1  # The shortest sequence that the mended model accepts
    proof: MendProof | None = None  # The comparison with the original alone; None if none ran
    verdict: Verdict | None = None  # The verdict of the check of the mended graph; None if none ran
    # One sequence's answer against padding, before and after; None if it cannot be drawn
    curve: PaddingCurve | None = None
    # The numbers with which the original leaves out a step, if all its values are that one
    hiding: tuple[float, ...] = ()

    @property
    def notice(self) -> str | None:
        """How the mended model differs from the original on purpose; None if it does not."""
        if not self.hiding:
            return None
        numbers = " or ".join(f"{number:g}" for number in self.hiding)
        return (
            f"the original skips steps of which all values are {numbers} (Masking, mask_zero); the mended model "
            "takes such a step for data, because only the length says where a sequence ends; the proof has none"
        )

    def as_json(self) -> dict[str, Any]:
        """The value of `fix` in `check --json`."""
        return {
            "mendable": self.mendable,
            "reason": self.reason,
            "operator": self.operator,
            **location_as_json(self.location),
            "changes": [
                {
                    **{"operator": change.operator, "kind": change.kind, **location_as_json(change.location)},
                    **{"cause": change.cause, "before": list(change.before), "after": list(change.after)},
                }
                for change in self.changes
            ],
            "min_length": self.min_length,
            "notice": self.notice,
            "proof": None if self.proof is None else self.proof.as_json(),
            "verdict": self.verdict,
        }

    def as_record(self) -> dict[str, Any]:
        """The value of `mend` in `verification.json`: without code and paths of the machine that mended it."""
        return {
            "operators": [
                {"operator": change.operator, "kind": change.kind, "cause": change.cause} for change in self.changes
            ],
            "min_length": self.min_length,
            "notice": self.notice,
            "proof": None if self.proof is None else self.proof.as_json(),
        }


def operators_text(count: int) -> str:
    """Such as `12 operators`."""
    return f"{count} operator{'' if count == 1 else 's'}"


def title(change: MendedOperator) -> str:
    """The name of an operator with its type."""
    return change.operator if change.kind in change.operator else f"{change.operator} ({change.kind})"


def unified(change: MendedOperator) -> list[str]:
    """The graph text of an operator before and after, as the lines of a unified diff without its head."""
    before, after = ([_readable(line) for line in lines] for lines in (change.before, change.after))
    return list(difflib.unified_diff(before, after, lineterm="", n=len(before) + len(after)))[3:]


def _readable(line: str) -> str:
    """A line of graph text without empty names and without the types of attributes."""
    return re.sub(r"(\w+): \w+ = ", r"\1 = ", line.removeprefix('[""] '))


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
