"""Which differences of a raw sequence are rounding: the model is ill-conditioned at its values.

A sequence of equal steps has a deviation of rounding alone, and a model that divides by it makes that large. Then a few
ulps of the values, or of a graph's weights, move the answer as much; or float64 does not have the difference. Ordinary
sequences are never excused so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from lengthwise.verification.random_sequences import AMPLIFIED
from lengthwise_export.checking.baseline import Baseline
from lengthwise_export.checking.recording import Subject
from lengthwise_export.checking.trials import CheckTrial

_FINER: Final = 1000  # times smaller in float64 is a difference by rounding, at least


class Conditioning:
    """What is known of one model's rounding at raw values."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._amplified: dict[int, tuple[Baseline, list[float]]] = {}
        self._excused: dict[str, tuple[float, float]] = {}  # by kind: what ulps move, and the largest difference

    def notes(self) -> Iterator[str]:
        """One note for each kind of raw values at which differences were rounding."""
        for kind, (by_ulps, apart) in self._excused.items():
            why = f"a few ulps of such values move the answer by {by_ulps:.2g}" if by_ulps else "float64 has none"
            yield f"ill-conditioned at {kind}: {why}; differences of up to {apart:.2g} there are rounding"

    def beyond_rounding(
        self,
        first: Baseline,
        trial: CheckTrial,
        differences: Mapping[tuple[int, int], float],
        tolerance: float,
        *,
        exactly: bool,
    ) -> dict[tuple[int, int], float]:
        """The differences of a trial by its pairs of rows, but 0 for raw sequences where rounding explains them.

        `exactly`: whether to run in float64 too. It is not needed once ordinary sequences have shown a leak.
        """
        if any(value > tolerance and first.kind(row) is None for (row, _), value in differences.items()):
            return dict(differences)  # ordinary sequences show a leak, whatever the others do
        left = {pair: self._beyond_ulps(first, pair[0], value, tolerance) for pair, value in differences.items()}
        unexplained = {pair: first.kind(pair[0]) for pair, rest in left.items() if tolerance < rest < np.inf}
        if not exactly or trial.change == "poison" or not unexplained:
            return left
        before, after = (self._subject.answer_in_float64(one) for one in (first.batch, trial.batch))
        if before is None or after is None:
            return left
        exact = replace(first, answer=before)
        for pair, kind in unexplained.items():
            if exact.row_difference(after, *pair) <= min(tolerance, left[pair] / _FINER):
                left[pair] = self._excuse(str(kind), 0.0, left[pair])
        return left

    def _beyond_ulps(self, first: Baseline, row: int, difference: float, tolerance: float) -> float:
        """The difference of an answer; 0 if the sequence is raw, and a few ulps of it change the answer as much."""
        kind = first.kind(row)
        if difference <= tolerance or kind is None or not np.isfinite(difference):
            return difference
        if id(first) not in self._amplified:
            self._amplified[id(first)] = first, first.changes_by_ulps(self._subject)
        by_ulps = self._amplified[id(first)][1][row]
        return difference if difference > tolerance + AMPLIFIED * by_ulps else self._excuse(kind, by_ulps, difference)

    def _excuse(self, kind: str, by_ulps: float, difference: float) -> float:
        """Records a difference as rounding, for the notes of the report; returns 0."""
        before = self._excused.get(kind, (0.0, 0.0))
        self._excused[kind] = (max(before[0], by_ulps), max(before[1], difference))
        return 0.0
