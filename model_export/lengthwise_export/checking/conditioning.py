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

    def unexplained(
        self,
        first: Baseline,
        trial: CheckTrial,
        apart: Mapping[tuple[int, int], float],
        tolerance: float,
        *,
        exactly: bool,
    ) -> dict[tuple[int, int], float]:
        """The differences of a trial by its pairs of rows, 0 for those of raw sequences that rounding explains.

        `exactly`: whether float64 is asked too. A leak that ordinary sequences have shown needs no such proof.
        """
        if any(by > tolerance and first.kind(row) is None for (row, _), by in apart.items()):
            return dict(apart)  # ordinary sequences show it, whatever the others do
        left = {pair: self._beyond_ulps(first, pair[0], by, tolerance) for pair, by in apart.items()}
        moved = {pair: first.kind(pair[0]) for pair, by in left.items() if tolerance < by < np.inf}
        if not exactly or trial.change == "poison" or not moved:
            return left
        before, after = (self._subject.answer_in_float64(one) for one in (first.batch, trial.batch))
        if before is None or after is None:
            return left
        exact = replace(first, answer=before)
        for pair, kind in moved.items():
            if exact.moved_by(after, *pair) <= min(tolerance, left[pair] / _FINER):
                left[pair] = self._excuse(str(kind), 0.0, left[pair])
        return left

    def _beyond_ulps(self, first: Baseline, row: int, moved: float, tolerance: float) -> float:
        """The difference of an answer; 0 if the sequence is raw, and a few ulps of its values move the answer so."""
        kind = first.kind(row)
        if moved <= tolerance or kind is None or not np.isfinite(moved):
            return moved
        if id(first) not in self._amplified:
            self._amplified[id(first)] = first, first.amplified(self._subject)
        by_ulps = self._amplified[id(first)][1][row]
        return moved if moved > tolerance + AMPLIFIED * by_ulps else self._excuse(kind, by_ulps, moved)

    def _excuse(self, kind: str, by_ulps: float, moved: float) -> float:
        """Notes a difference that is rounding; 0."""
        before = self._excused.get(kind, (0.0, 0.0))
        self._excused[kind] = (max(before[0], by_ulps), max(before[1], moved))
        return 0.0
