"""What a check found: the verdict with its reason, where leaks begin, what every trial showed, and what really ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lengthwise_export.checking.axes import Geometry
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.trials import Change

Verdict = Literal["sound", "leak", "warning", "uncheckable"]

ROUNDING: Final = 1e-5
"""What sums in another order may differ by, relative to the largest value where that is above 1."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What one trial showed.

    Attributes:
        name: The trial's.
        change: What kind of change it is.
        difference: The largest, in units of max(1, largest value); None where the model raised.
        passed: Whether that is within the tolerance.
        raised: What the model said when it raised.
    """

    name: str
    change: Change
    difference: float | None
    passed: bool
    raised: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedSizes:
    """The batches that really ran, and whose answers were compared: each number of rows, width and length once."""

    rows: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, batches: Iterable[Geometry]) -> CheckedSizes:
        """What these batches come to."""
        seen = list(batches)
        return cls(
            rows=tuple(sorted({batch.rows for batch in seen})),
            widths=tuple(sorted({batch.width for batch in seen})),
            lengths=tuple(sorted({length for batch in seen for length in batch.lengths})),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check.

    Attributes:
        verdict: `leak` for a difference that finite values, width or neighbours show; `warning` where only NaN, Inf or
            1e30 in the padding does.
        reason: A sentence.
        leaks: Where they begin.
        trials: Everything that was tried.
        notes: What else should be known: lengths at which the model raises, how wide it can go.
        max_length: The widest batch that ran, of those that were to.
        tolerance: How far an answer may move; what lies below is rounding.
        ran: The batches that the trials ran.
    """

    verdict: Verdict
    reason: str
    leaks: tuple[Leak, ...] = ()
    trials: tuple[TrialResult, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    tolerance: float = ROUNDING
    ran: CheckedSizes = CheckedSizes()

    def exit_code(self, *, strict: bool = False) -> int:
        """0: nothing leaks; 1: something does (under `strict`, a warning too); 2: it could not be checked."""
        if self.verdict == "uncheckable":
            return 2
        return int(self.verdict == "leak" or (strict and self.verdict == "warning"))


def as_ranges(sizes: Sequence[int]) -> str:
    """Sizes for people: those in a row as `1 to 5`."""
    parts: list[list[int]] = []
    for size in sizes:
        if parts and size == parts[-1][-1] + 1:
            parts[-1].append(size)
        else:
            parts.append([size])
    shown = (f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
    return ", ".join(shown)
