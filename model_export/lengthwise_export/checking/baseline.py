"""The baseline of a check: some sequences, their first answer, and the difference of a later answer from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lengthwise.padding import PaddedBatch, Steps
from lengthwise.verification.measurement import MOST_AMPLIFIED
from lengthwise.verification.random_sequences import AMPLIFIED, rounded_otherwise
from lengthwise_export.checking import axes
from lengthwise_export.checking.recording import ModelOutput, Subject


@dataclass(frozen=True, slots=True)
class Baseline:
    """Sequences, the batch in which they ran first, the answer to it, and the kind of those that are of raw values."""

    sequences: Sequence[Steps]
    batch: PaddedBatch
    answer: ModelOutput
    kinds: Sequence[str | None] = ()

    def moved_by(self, after: ModelOutput, row: int, other: int) -> float:
        """The largest difference between another batch's answer to a sequence and the baseline's, at valid steps.

        `other`: The row of that sequence in the other batch.
        """
        length, apart = len(self.sequences[row]), [0.0]
        for one, two, along_steps in (
            (self.answer.logits, after.logits, self.answer.logits.ndim == 3),
            (self.answer.attention, after.attention, True),
        ):
            if one is None or two is None:
                continue
            if one.ndim != two.ndim or other >= len(two):
                return float("inf")
            mine, its = (one[row][:length], two[other][:length]) if along_steps else (one[row], two[other])
            apart.append(axes.gap(mine, its) if mine.shape == its.shape else float("inf"))
        return max(apart)

    def largest_difference(self, after: ModelOutput) -> float:
        """The largest difference over all rows, for a batch that holds the same sequences in the same order."""
        return self._largest(after, range(self.batch.rows))

    def _largest(self, after: ModelOutput, rows: Iterable[int]) -> float:
        return max(self.moved_by(after, row, row) for row in rows)

    def kind(self, row: int) -> str | None:
        """The kind of raw values of a row; None if they are ordinary."""
        return self.kinds[row] if self.kinds else None

    def ordinary(self) -> list[int]:
        """The rows of ordinary values."""
        return [row for row in range(self.batch.rows) if self.kind(row) is None]

    def amplified(self, subject: Subject) -> list[float]:
        """For each row: the most that a few ulps of all values move its answer, alone or in this batch."""
        if subject.steps.kind == "tokens":
            return [0.0] * self.batch.rows
        answers = [
            subject.answer(PaddedBatch(steps, self.batch.lengths)) for steps in rounded_otherwise(self.batch.steps)
        ]
        return [max(self.moved_by(answer, row, row) for answer in answers) for row in range(self.batch.rows)]

    def allowed_rounding(self, subject: Subject, tolerance: float) -> float:
        """The tolerance, raised for a model that amplifies rounding.

        Another width or number of rows changes the order of sums, and so their rounding. How much that can change an
        answer is estimated by changing every input value by 1 ulp (the smallest step of float32).

        Returns:
            Ten times what 1 ulp moves an answer to ordinary values, if that is above the tolerance and below 1e-3; else
            the tolerance.
        """
        if subject.steps.kind == "tokens":
            return tolerance
        moved = self._largest(subject.answer(self.with_one_ulp_added()), self.ordinary())
        return AMPLIFIED * moved if tolerance < AMPLIFIED * moved < MOST_AMPLIFIED else tolerance

    def with_one_ulp_added(self) -> PaddedBatch:
        """The same batch with each value replaced by the next larger float32; zeros stay zeros."""
        steps = self.batch.steps
        moved = np.where(steps == 0, steps, np.nextafter(steps, np.float32(np.inf)))
        return PaddedBatch(moved.astype(np.float32), self.batch.lengths)

    def with_last_steps_changed(self, vocabulary: int | None) -> PaddedBatch:
        """The same batch with the last valid step of each row changed."""
        steps = self.batch.steps.copy()
        for row, length in enumerate(self.batch.lengths):
            last = steps[row, length - 1]
            steps[row, length - 1] = np.roll(last, 1) + 1 if vocabulary is None else (last + 1) % vocabulary
        return PaddedBatch(steps, self.batch.lengths)
