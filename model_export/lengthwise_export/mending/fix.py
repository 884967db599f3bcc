"""What `check --suggest` proposes: the operators that a mend changes, the proof, and an answer against padding."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

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
                    "operator": change.operator,
                    "kind": change.kind,
                    **location_as_json(change.location),
                    "cause": change.cause,
                    "before": list(change.before),
                    "after": list(change.after),
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
