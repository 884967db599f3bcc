"""What `check --suggest` proposes: the operators that a mend changes, the proof, and an answer against padding."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from lengthwise.padding import Steps, pad
from lengthwise.reports.templates import render
from lengthwise.wrong_values import counted
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.report import Verdict
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError
from lengthwise_export.mending.mend import MendedOperator
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
        record = self.as_record()
        changes = zip(record.pop("operators"), self.changes, strict=True)
        return {
            **{"mendable": self.mendable, "reason": self.reason, "operator": self.operator},
            **location_as_json(self.location),
            "changes": [
                {**fields, **location_as_json(one.location), "before": list(one.before), "after": list(one.after)}
                for fields, one in changes
            ],
            **record,
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

    def on_terminal(self) -> RenderableType:
        """A proposed fix for the terminal. Code is never wrapped: print it without cropping."""
        text = self.reason
        if not self.mendable:
            where = "".join(f"{each}: " for each in (self.location, self.operator) if each is not None)
            text = f"this model cannot be mended: {where}{text}"
        parts: list[RenderableType] = [
            "",
            Text.assemble(("mend", f"bold {'green' if self.mendable else 'red'}"), f"  {text}"),
        ]
        for change in self.changes:
            parts += ["", *_changed(change)]
        if self.min_length > 1:
            parts.append(Text(f"note: the model accepts sequences of {self.min_length} steps and more"))
        if self.notice is not None:
            parts.append(Text(f"note: {self.notice}"))
        if self.proof is not None:
            raised = len(self.proof.raised) if self.proof.holds else 0
            skipped = f"; the original raises alone at {raised} shorter lengths" if raised else ""
            parts += ["", Text.assemble(("proof", "bold"), f"  {self.proof}{skipped}")]
        if self.mendable and self.changes:
            parts.append(Text("`lengthwise export TARGET --mend --out MODELS/NAME` publishes the mended graph"))
        return Group(*parts)

    def as_section(self) -> Markup:
        """The section of the page: what the mend changes, the proof, and an answer against padding."""
        return render(_TEMPLATE, fix=self, title=_title, unified=unified, scaled=_scaled, candidates=CANDIDATES)

    def summary(self) -> str:
        """The mend of an export as a line: how many operators, and the proof."""
        return f"mended {counted(len(self.changes), 'operator')}: {self.proof}"


def unified(change: MendedOperator) -> list[str]:
    """The graph text of an operator before and after, as the lines of a unified diff without its head."""
    before, after = (  # without empty names and the types of attributes
        [re.sub(r"(\w+): \w+ = ", r"\1 = ", line.removeprefix('[""] ')) for line in lines]
        for lines in (change.before, change.after)
    )
    return list(difflib.unified_diff(before, after, lineterm="", n=len(before) + len(after)))[3:]


_TEMPLATE: Final = Path(__file__).with_name("fix.html")
_COLORS: Final = {"-": "red", "+": "green"}  # of a line on the terminal


def _title(change: MendedOperator) -> str:
    """The name of an operator with its type, if the name does not have the type already."""
    return change.operator if change.kind in change.operator else f"{change.operator} ({change.kind})"


def _changed(change: MendedOperator) -> Iterator[RenderableType]:
    """A changed operator for the terminal: its line of code, the cause, and the difference of its graph text."""
    at = change.location
    yield Text(f"{'' if at is None else f'{at}: '}{_title(change)}", style="bold")
    if at is not None and at.source:
        yield Text(f" {at.line} | {at.source}", no_wrap=True, overflow="ignore")
    yield Text.assemble(("  why   ", "bold"), change.cause)
    for line in unified(change):
        yield Text(f"  {line}", style=_COLORS.get(line[:1], ""), no_wrap=True, overflow="ignore")


_LENGTH: Final = 40  # steps of the sequence, if the model accepts batches wide enough
_MAX_SHARE: Final = 2.0
_POINTS: Final = 41
CANDIDATES: Final = 16  # the sequence is the one whose answer moves most among this many random ones


@dataclass(frozen=True, slots=True)
class PaddingCurve:
    """The probability of one sequence's class against the padding behind it."""

    length: int  # The steps of the sequence
    shares: tuple[float, ...]  # The padding as a share of the length: 0 to 2
    before: tuple[float, ...]  # The probability that the original gives, at each share
    after: tuple[float, ...]  # The probability that the mended model gives, at each share


def draw_curve(
    original: Subject, mended: Subject, *, max_length: int, min_length: int = 1, seed: int = 0
) -> PaddingCurve | None:
    """Runs one sequence with more and more zeros behind it; None if a model raises, or an answer is not finite."""
    length = max(min(_LENGTH, int(max_length / (1 + _MAX_SHARE))), min_length)
    widths = {share: round(length * (1 + share)) for share in np.linspace(0, _MAX_SHARE, _POINTS).tolist()}
    shares = [share for share, width in widths.items() if width <= max_length]
    sampler = Sampler(original.steps, seed)
    sequences = [sampler.sequence(length) for _ in range(CANDIDATES)]
    try:
        alone = [_probabilities(original, steps, length) for steps in sequences]
        padded = [_probabilities(original, steps, widths[shares[-1]]) for steps in sequences]
        moved = [abs(one - other)[one.argmax()] for one, other in zip(alone, padded, strict=True)]
        chosen = int(np.argmax(moved))
        label = int(alone[chosen].argmax())
        before, after = (
            tuple(float(_probabilities(model, sequences[chosen], widths[share])[label]) for share in shares)
            for model in (original, mended)
        )
    except (RunError, IndexError):  # no axis of steps as wide as the batch
        return None
    return PaddingCurve(length, tuple(shares), before, after) if np.isfinite([*before, *after]).all() else None


def _probabilities(model: Subject, steps: Steps, width: int) -> NDArray[np.float64]:
    """The probabilities of the classes; of a per-step model those at the last valid step."""
    logits = model.answer(pad([steps], width=width)).logits[0]
    row: NDArray[np.float64] = (logits[len(steps) - 1] if logits.ndim == 2 else logits).astype(np.float64)
    if row.size == 1:
        row = np.array([row[0], 0.0])
    elif row.min() >= 0 and abs(row.sum() - 1) <= 1e-4:
        return row
    powers = np.exp(row - row.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


_MARKS: Final = (0.0, 0.5, 1.0, 1.5, 2.0)


def _scaled(curve: PaddingCurve) -> dict[str, Any]:
    """What the picture of a curve draws, in shares of its axes, and how far each answer moves."""
    last, drawn = curve.shares[-1] or 1.0, [*curve.before, *curve.after]
    # At least 0.1 high around the curves, within 0 to 1.
    middle, height = (min(drawn) + max(drawn)) / 2, max(1.2 * (max(drawn) - min(drawn)), 0.1)
    low = min(max(middle - height / 2, 0.0), max(1 - height, 0.0))
    height = min(height, 1.0 - low)
    before, after = (
        [(share / last, (value - low) / height) for share, value in zip(curve.shares, values, strict=True)]
        for values in (curve.before, curve.after)
    )
    return {
        "before": before,
        "after": after,
        "marks": [(mark / last, f"{mark:.0%}") for mark in _MARKS if mark <= curve.shares[-1]],
        "levels": [(part, f"{low + part * height:.2f}") for part in (0.0, 0.5, 1.0)],
        "moved": [max(abs(value - values[0]) for value in values) for values in (curve.before, curve.after)],
    }
