"""What `check --suggest` proposes: the operators that a mend changes, its proof, and an answer against padding.

Each part is shown in three forms: as JSON, on the terminal, and as a section of an HTML page (`fix.html`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from lengthwise_export.checking.page import render
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.report import Report, Verdict
from lengthwise_export.checking.trials import Sampler
from lengthwise_export.errors import RunError, counted
from lengthwise_export.layouts import Steps, pad
from lengthwise_export.mending.engine import MendedOperator
from lengthwise_export.mending.proof import MendProof
from lengthwise_export.tracing.source_lines import CodeLocation, location_as_json


@dataclass(frozen=True, slots=True)
class FixProposal:
    """What a mend would change in a target, or why it cannot be mended."""

    mendable: bool  # Whether the target is sound, or would be after the mend
    reason: str  # Why it is mendable or not, in words
    operator: str | None = None  # The operator that cannot be mended; None if it is not one operator
    location: CodeLocation | None = None  # Its line of code, if it is known
    changes: tuple[MendedOperator, ...] = ()  # The operators that the mend changes, in the order of execution
    min_length: int = 1  # The shortest sequence that the mended model accepts, in steps
    proof: MendProof | None = None  # The comparison with the original alone; None if none ran
    verdict: Verdict | None = None  # The verdict of the check of the mended graph; None if none ran
    # Computes the answer to one sequence against padding, before and after the mend. Only a page shows this, and it
    # takes about a hundred runs of the two models. None if there is no such curve
    curve: Callable[[], PaddingCurve | None] = lambda: None
    # The original leaves out a step if all its values are one of these numbers (Masking, mask_zero)
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
        """The value of `fix` in `check --json`: the record of `as_record`, with code, lines, reason and verdict."""
        record = self.as_record()
        operators = record.pop("operators")
        return {
            "mendable": self.mendable,
            "reason": self.reason,
            "operator": self.operator,
            **location_as_json(self.location),
            "changes": [
                {
                    **operator,
                    **location_as_json(change.location),
                    "before": list(change.before),
                    "after": list(change.after),
                }
                for operator, change in zip(operators, self.changes, strict=True)
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

    def on_terminal(self, report: Report) -> RenderableType:
        """The proposal as text for the terminal, behind a report. Code is never wrapped: print it without cropping."""
        where = "".join(f"{part}: " for part in (self.location, self.operator) if part is not None)
        text = self.reason if self.mendable else f"this model cannot be mended: {where}{self.reason}"
        parts: list[RenderableType] = [
            "",
            Text.assemble(("mend", f"bold {'green' if self.mendable else 'red'}"), f"  {text}"),
        ]
        for change in self.changes:
            parts += ["", *_change_on_terminal(change)]
        recurrent = [leak.operator for leak in report.leaks if leak.kind.partition("_")[0] in ("lstm", "gru", "rnn")]
        is_changed = any(change.kind in ("LSTM", "GRU", "RNN") for change in self.changes)
        notes = [
            f"the model accepts sequences of {self.min_length} steps and more" if self.min_length > 1 else None,
            self.notice,
            f"{recurrent[0]} needs no mend: the graph of a torch module gives the lengths to its LSTM, GRU and RNN"
            if self.mendable and recurrent and not is_changed
            else None,
        ]
        parts += [Text(f"note: {note}") for note in notes if note is not None]
        if self.proof is not None:
            raised = len(self.proof.raised) if self.proof.holds else 0
            skipped = f"; the original raises alone at {raised} shorter lengths" if raised else ""
            parts += ["", Text.assemble(("proof", "bold"), f"  {self.proof}{skipped}")]
        if self.mendable and self.changes:
            parts.append(
                Text("`export --mend`, with the target and the options of this check, publishes the mended graph")
            )
        return Group(*parts)

    def as_section(self) -> Markup:
        """The section of the HTML page: what the mend changes, the proof, and the answer against padding."""
        chart = {"curve": self.curve(), "scaled": _scaled_to_chart, "candidates": CANDIDATES}
        return render(_TEMPLATE, fix=self, title=_title, unified=unified, **chart)

    def summary(self) -> str:
        """A line about the mend of an export: how many operators it changes, and the proof."""
        return f"mended {counted(len(self.changes), 'operator')}: {self.proof}"


def unified(change: MendedOperator) -> list[str]:
    """The graph text of an operator before and after, as the lines of a unified diff without its head."""
    # Without the types of attributes
    before, after = (
        [re.sub(r"(\w+): \w+ = ", r"\1 = ", line) for line in lines] for lines in (change.before, change.after)
    )
    return list(difflib.unified_diff(before, after, lineterm="", n=len(before) + len(after)))[3:]


_TEMPLATE: Final = Path(__file__).with_name("fix.html")
_COLORS: Final = {"-": "red", "+": "green"}  # of a line of a diff on the terminal, by its first character


def _title(change: MendedOperator) -> str:
    """The name of an operator, followed by its type in brackets if the name does not contain it."""
    return change.operator if change.kind in change.operator else f"{change.operator} ({change.kind})"


def _change_on_terminal(change: MendedOperator) -> Iterator[RenderableType]:
    """The lines for a changed operator on the terminal: its line of code, the cause, and the diff of its graph text."""
    location = change.location
    yield Text(f"{'' if location is None else f'{location}: '}{_title(change)}", style="bold")
    if location is not None and location.source:
        yield Text(f" {location.line} | {location.source}", no_wrap=True, overflow="ignore")
    yield Text.assemble(("  why   ", "bold"), change.cause)
    for line in unified(change):
        yield Text(f"  {line}", style=_COLORS.get(line[:1], ""), no_wrap=True, overflow="ignore")


# The curve of one sequence's answer against padding:
_LENGTH: Final = 40  # steps of the sequence, if the model accepts batches wide enough
_MAX_SHARE: Final = 2.0  # the most padding, as a share of the length
_POINTS: Final = 41  # amounts of padding that are run
CANDIDATES: Final = 16  # random sequences; the curve is that of the one whose answer changes most


@dataclass(frozen=True, slots=True)
class PaddingCurve:
    """The probability of one sequence's class against the padding after it."""

    length: int  # The steps of the sequence
    shares: tuple[float, ...]  # The padding as a share of the length: 0 to 2
    before: tuple[float, ...]  # The probability that the original gives, at each share
    after: tuple[float, ...]  # The probability that the mended model gives, at each share


def padding_curve(
    original: Subject, mended: Subject, *, max_length: int, min_length: int = 1, seed: int = 0
) -> PaddingCurve | None:
    """Runs one sequence in both models with more and more zeros as padding: what a page shows as a curve.

    The sequence is one of some random ones: the one whose probability the padding changes most in the original.

    Args:
        original: The original.
        mended: The mended model.
        max_length: The widest batch that the models accept, in steps.
        min_length: The shortest sequence that they accept.
        seed: The seed of the random sequences.

    Returns:
        The curve; None if a model raises, or an answer is not finite.
    """
    length = max(min(_LENGTH, int(max_length / (1 + _MAX_SHARE))), min_length)
    # By the amount of padding, as a share of the length: the width of the batch
    widths = {share: round(length * (1 + share)) for share in np.linspace(0, _MAX_SHARE, _POINTS).tolist()}
    shares = [share for share, width in widths.items() if width <= max_length]
    sampler = Sampler(original.steps, seed)
    sequences = [sampler.sequence(length) for _ in range(CANDIDATES)]
    try:
        # The sequence whose probability the most padding changes most. The probability is that of its label: the class
        # that the original gives it without padding.
        unpadded = [_probabilities(original, steps, length) for steps in sequences]
        padded = [_probabilities(original, steps, widths[shares[-1]]) for steps in sequences]
        labels = [int(probabilities.argmax()) for probabilities in unpadded]
        changes = [abs(unpadded[index] - padded[index])[label] for index, label in enumerate(labels)]
        chosen = int(np.argmax(changes))
        before, after = (
            tuple(float(_probabilities(model, sequences[chosen], widths[share])[labels[chosen]]) for share in shares)
            for model in (original, mended)
        )
    except (RunError, IndexError):  # an answer for each step has fewer steps than the sequence
        return None
    return PaddingCurve(length, tuple(shares), before, after) if np.isfinite([*before, *after]).all() else None


def _probabilities(model: Subject, steps: Steps, width: int) -> NDArray[np.float64]:
    """`[classes]`: the probabilities that a model gives a sequence, alone in a batch of this width.

    Those of a per-step model are at the last valid step. A single logit is that of the first of two classes. An answer
    that is a list of probabilities already is returned as it is.
    """
    logits = model.answer(pad([steps], width=width)).logits[0]
    row: NDArray[np.float64] = (logits[len(steps) - 1] if logits.ndim == 2 else logits).astype(np.float64)
    if row.size == 1:
        row = np.array([row[0], 0.0])
    elif row.min() >= 0 and abs(row.sum() - 1) <= 1e-4:
        return row
    powers = np.exp(row - row.max())
    return cast("NDArray[np.float64]", powers / powers.sum())


_MARKS: Final = (0.0, 0.5, 1.0, 1.5, 2.0)  # shares of padding that the chart names


def _scaled_to_chart(curve: PaddingCurve) -> dict[str, Any]:
    """The points of a curve and the texts of its axes as coordinates in the chart, by their names in `fix.html`.

    Returns:
        1. `before` and `after`: the points of the lines of both models. A coordinate is from 0 to 1 along its axis.
        2. `marks` and `levels`: the coordinates on the horizontal and on the vertical axis that have a text, each with
           its text.
        3. `moved`: the largest change of the probability by padding, in the original and in the mended model.
    """
    last_share, probabilities = curve.shares[-1] or 1.0, [*curve.before, *curve.after]
    # The vertical axis is at least 0.1 high, with the curves in the middle, and within 0 to 1.
    middle = (min(probabilities) + max(probabilities)) / 2
    height = max(1.2 * (max(probabilities) - min(probabilities)), 0.1)
    low = min(max(middle - height / 2, 0.0), max(1 - height, 0.0))
    height = min(height, 1.0 - low)
    before, after = (
        [(share / last_share, (value - low) / height) for share, value in zip(curve.shares, values, strict=True)]
        for values in (curve.before, curve.after)
    )
    return {
        "before": before,
        "after": after,
        "marks": [(mark / last_share, f"{mark:.0%}") for mark in _MARKS if mark <= curve.shares[-1]],
        "levels": [(part, f"{low + part * height:.2f}") for part in (0.0, 0.5, 1.0)],
        "moved": [max(abs(value - values[0]) for value in values) for values in (curve.before, curve.after)],
    }
