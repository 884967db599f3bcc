"""The result of a check: verdict, reason, leaks, the result of each trial, and the batch sizes that ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lengthwise.verification.random_sequences import ROUNDING
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.trials import Change, Geometry

Verdict = Literal["sound", "leak", "warning", "uncheckable"]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of one trial.

    Attributes:
        difference: The largest difference of an answer, in units of max(1, largest value); None if the model raised.
    """

    name: str
    change: Change
    difference: float | None
    passed: bool
    raised: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedSizes:
    """The row counts, widths and lengths of the batches that ran and whose answers were compared, without repeats."""

    rows: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, batches: Iterable[Geometry]) -> CheckedSizes:
        """Collects the sizes of these batches."""
        seen = list(batches)
        return cls(
            rows=tuple(sorted({batch.rows for batch in seen})),
            widths=tuple(sorted({batch.width for batch in seen})),
            lengths=tuple(sorted({length for batch in seen for length in batch.lengths})),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    Attributes:
        verdict: `leak` if an answer changes with finite padding, the width or other rows; `warning` if it changes only
            with NaN, Inf or 1e30 in the padding, or with values that get past the finite number of a mask.
        reason: The reason for the verdict, as a sentence.
        leaks: The operators at which leaks begin.
        trials: The results of all trials.
        notes: Further remarks, such as lengths at which the model raises.
        max_length: The widest batch that the model accepts, at most the requested one.
        tolerance: The allowed difference of an answer.
        ran: The sizes of the batches that ran.
        min_length: The shortest sequence that the model accepts: unbatched, it raises for every shorter one.
    """

    verdict: Verdict
    reason: str
    leaks: tuple[Leak, ...] = ()
    trials: tuple[TrialResult, ...] = ()
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    tolerance: float = ROUNDING
    ran: CheckedSizes = CheckedSizes()
    min_length: int = 1

    def exit_code(self, *, strict: bool = False) -> int:
        """0: no leak; 1: a leak (with `strict`, a warning too); 2: not checkable."""
        if self.verdict == "uncheckable":
            return 2
        return int(self.verdict == "leak" or (strict and self.verdict == "warning"))


def past_a_fill(report: Report) -> str | None:
    """Which mask lets padding through for large values, as a sentence; None if none does."""
    is_shown = any(outcome.change == "scale" for outcome in report.trials)
    return report.leaks[0].cause.why if is_shown else None


def as_ranges(sizes: Sequence[int]) -> str:
    """Sizes as text; consecutive ones are shortened to `1 to 5`."""
    parts: list[list[int]] = []
    for size in sizes:
        if parts and size == parts[-1][-1] + 1:
            parts[-1].append(size)
        else:
            parts.append([size])
    shown = (f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
    return ", ".join(shown)
