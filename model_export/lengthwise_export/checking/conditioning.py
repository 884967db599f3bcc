"""Tells rounding from leaks, where a model is ill-conditioned at the values of a raw sequence.

A sequence of equal steps has a standard deviation that is rounding only, and a model that divides by it makes that
large. A difference at such a sequence is *excused*, so not a leak, in two cases:

- A few ulps (units in the last place) of the values, or of a graph's weights, change the answer as much.
- In float64, the difference is far smaller.

Differences of ordinary sequences are never excused so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from lengthwise.verification.random_sequences import AMPLIFIED
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import CheckTrial

_FINER: Final = 1000  # a difference that is at least so many times smaller in float64 is rounding


class Conditioning:
    """Excuses differences of one model that are rounding, and keeps what it excused for the notes of the report."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        # For each row of a baseline, what a few ulps change; computed once for each baseline
        self._changes_by_ulps = functools.cache(lambda baseline: baseline.changes_by_ulps(subject))
        # For each kind of raw values, what a few ulps change (0 if float64 excused it), and the largest difference
        self._excused: dict[str, tuple[float, float]] = {}

    def notes(self) -> Iterator[str]:
        """Yields one note for each kind of raw values at which differences were excused."""
        for kind, (by_ulps, difference) in self._excused.items():
            why = f"a few ulps of such values move the answer by {by_ulps:.2g}" if by_ulps else "float64 has none"
            yield f"ill-conditioned at {kind}: {why}; differences of up to {difference:.2g} there are rounding"

    def beyond_rounding(
        self,
        baseline: Baseline,
        trial: CheckTrial,
        differences: Mapping[tuple[int, int], float],
        tolerance: float,
        *,
        use_float64: bool,
    ) -> dict[tuple[int, int], float]:
        """The differences of a trial, with 0 in the place of those that are excused.

        Args:
            baseline: The sequences and their first answers.
            trial: The batch with the same sequences.
            differences: The difference of each answer, by the pair of its rows in the baseline and in the trial.
            tolerance: What differences may be without an excuse.
            use_float64: Whether to run in float64 too, if ulps do not explain a difference. It is not needed once
                ordinary sequences have shown a leak.
        """
        if any(value > tolerance and baseline.kind(row) is None for (row, _), value in differences.items()):
            return dict(differences)  # ordinary sequences show a leak in this trial, so no excuse changes the verdict
        # 1. By ulps
        remaining = {
            pair: self._beyond_ulps(baseline, pair[0], value, tolerance) for pair, value in differences.items()
        }
        # 2. By float64, what is left
        unexplained = {pair: baseline.kind(pair[0]) for pair, value in remaining.items() if tolerance < value < np.inf}
        if not use_float64 or trial.change == "poison" or not unexplained:
            return remaining
        before, after = (self._subject.answer_in_float64(batch) for batch in (baseline.batch, trial.batch))
        if before is None or after is None:
            return remaining
        exact = replace(baseline, answer=before)
        for pair, kind in unexplained.items():
            if exact.row_difference(after, *pair) <= min(tolerance, remaining[pair] / _FINER):
                remaining[pair] = self._excuse(str(kind), 0.0, remaining[pair])
        return remaining

    def _beyond_ulps(self, baseline: Baseline, row: int, difference: float, tolerance: float) -> float:
        """The difference of the answer to a row of the baseline; 0 if a few ulps of its raw values change it as much.

        An excused difference is kept for the notes.
        """
        kind = baseline.kind(row)
        if difference <= tolerance or kind is None or not np.isfinite(difference):
            return difference
        by_ulps = self._changes_by_ulps(baseline)[row]
        return difference if difference > tolerance + AMPLIFIED * by_ulps else self._excuse(kind, by_ulps, difference)

    def _excuse(self, kind: str, by_ulps: float, difference: float) -> float:
        """Keeps an excused difference for the notes, the largest of each kind of raw values. Returns 0."""
        largest_by_ulps, largest_difference = self._excused.get(kind, (0.0, 0.0))
        self._excused[kind] = (max(largest_by_ulps, by_ulps), max(largest_difference, difference))
        return 0.0
