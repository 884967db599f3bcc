"""The baseline of a check: some sequences, their first answer, and the difference of a later answer from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lengthwise.padding import PaddedBatch, Steps
from lengthwise_export.checking import axes
from lengthwise_export.checking.recording import ModelOutput, Subject

_MAX_AMPLIFIED: Final = 1e-3
"""The tolerance is raised for models that amplify rounding, but never above this: more would hide leaks."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Sequences, the batch in which they ran first, and the answer to it."""

    sequences: Sequence[Steps]
    batch: PaddedBatch
    answer: ModelOutput

    def moved_by(self, after: ModelOutput, row: int, other: int) -> float:
        """The largest difference between another batch's answer to a sequence and the baseline's, at valid steps.

        Args:
            after: The answer to the other batch.
            row: The index of the sequence.
            other: The row of that sequence in the other batch.
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
        return max(self.moved_by(after, row, row) for row in range(self.batch.rows))

    def allowed_rounding(self, subject: Subject, tolerance: float) -> float:
        """The tolerance, raised for a model that amplifies rounding.

        Another width or number of rows changes the order of sums, and so their rounding. How much that can change an
        answer is estimated by changing every input value by 1 ulp (the smallest step of float32).

        Args:
            subject: The model that gave the baseline's answer.
            tolerance: The tolerance without amplification.

        Returns:
            Ten times what 1 ulp moves an answer, if that is above the tolerance and below 1e-3; else the tolerance.
        """
        if subject.steps.kind == "tokens":
            return tolerance
        moved = self.largest_difference(subject.answer(self.with_one_ulp_added()))
        return 10 * moved if tolerance < 10 * moved < _MAX_AMPLIFIED else tolerance

    def with_one_ulp_added(self) -> PaddedBatch:
        """The same batch with each value replaced by the next larger float32; zeros stay zeros."""
        steps = self.batch.steps
        moved = np.where(steps == 0, steps, np.nextafter(steps, np.float32(np.inf)))
        return PaddedBatch(moved.astype(np.float32), self.batch.lengths)

    def with_last_steps_changed(self, vocabulary: int | None) -> PaddedBatch:
        """The same batch with the last valid step of each row changed.

        Args:
            vocabulary: Number of token ids; None for a model of values.
        """
        steps = self.batch.steps.copy()
        for row, length in enumerate(self.batch.lengths):
            last = steps[row, length - 1]
            steps[row, length - 1] = np.roll(last, 1) + 1 if vocabulary is None else (last + 1) % vocabulary
        return PaddedBatch(steps, self.batch.lengths)
