"""The baseline of a check: some sequences, their first answer, and the difference of a later answer from it.

The same sequences must get the same answer, whatever the model was asked before (`Steadiness`):

    as it was read: ask, another batch, ask, another batch, ask, ...
    as it was read: the other batches, ask                             all answers must be equal
    after all trials: ask

A model that changes itself in evaluation mode (a running mean, a memory of the first batch, a counter) is refused: a
graph holds one of its states only. What changes and does not reach an answer, such as a cache, does no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.padding import PaddedBatch, Steps, pad, step_mask
from lengthwise.verification.random_sequences import AMPLIFIED, MOST_AMPLIFIED, rounded_otherwise
from lengthwise_export.checking.recording import ModelOutput, Operation, Subject
from lengthwise_export.checking.trials import BatchSizes, Sampler
from lengthwise_export.errors import RunError, UncheckableError

if TYPE_CHECKING:  # a graph does without torch
    from lengthwise_export.tracing.module_state import ModuleState


@dataclass(frozen=True, slots=True)
class Baseline:
    """Sequences, the batch in which they ran first, the answer to it, and the kind of those that are of raw values."""

    sequences: Sequence[Steps]
    batch: PaddedBatch
    answer: ModelOutput
    kinds: Sequence[str | None] = ()

    def row_difference(self, after: ModelOutput, row: int, other: int) -> float:
        """The `relative_difference` of the answer to `row` and the answer `after` to row `other` of another batch.

        Answers are compared at valid steps; the difference is infinite if they have different forms.
        """
        length, differences = len(self.sequences[row]), [0.0]
        for one, two, along_steps in (
            (self.answer.logits, after.logits, self.answer.logits.ndim == 3),
            (self.answer.attention, after.attention, True),
        ):
            if one is None or two is None:
                continue
            if one.ndim != two.ndim or other >= len(two):
                return float("inf")
            valid = slice(length) if along_steps else ...
            differences.append(relative_difference(one[row][valid], two[other][valid]))
        return max(differences)

    def largest_difference(self, after: ModelOutput, rows: Iterable[int] | None = None) -> float:
        """The largest difference over all or some rows, for a batch that holds the same sequences in the same order."""
        return max(self.row_difference(after, row, row) for row in (range(self.batch.rows) if rows is None else rows))

    def is_finite(self, row: int) -> bool:
        """Whether the answer to a row is finite, at valid steps."""
        return self.is_finite_in(self.answer, row, row)

    def is_finite_in(self, after: ModelOutput, row: int, other: int) -> bool:
        """Whether the answer to a sequence is finite in row `other` of another batch, or has another form there."""
        if after.logits.ndim != self.answer.logits.ndim or other >= len(after.logits):
            return True
        logits = after.logits[other]
        return bool(np.isfinite(logits[: len(self.sequences[row])] if logits.ndim == 2 else logits).all())

    def kind(self, row: int) -> str | None:
        """The kind of raw values of a row; None if they are ordinary."""
        return self.kinds[row] if self.kinds else None

    def ordinary(self) -> list[int]:
        """The rows of ordinary values."""
        return [row for row in range(self.batch.rows) if self.kind(row) is None]

    def amplified(self, subject: Subject) -> list[float]:
        """For each row: the largest change of its answer when all values, or the weights, change by a few ulps."""
        if subject.steps.kind == "tokens":
            return [0.0] * self.batch.rows
        rounded = (PaddedBatch(steps, self.batch.lengths) for steps in rounded_otherwise(self.batch.steps))
        answers = [*map(subject.answer, rounded), *subject.answers_of_rounded_weights(self.batch)]
        moved = [[self.row_difference(answer, row, row) for answer in answers] for row in range(self.batch.rows)]
        return [max(filter(np.isfinite, by), default=0.0) for by in moved]

    def allowed_rounding(self, subject: Subject, tolerance: float) -> float:
        """The tolerance, raised for a model that amplifies rounding."""
        # Another width or number of rows changes the order of sums, and so their rounding. How much that can change an
        # answer is estimated by changing every input value by 1 ulp, the smallest step of float32.
        if subject.steps.kind == "tokens":
            return tolerance
        steps = self.batch.steps
        next_larger = np.where(steps == 0, steps, np.nextafter(steps, np.float32(np.inf))).astype(np.float32)
        after = subject.answer(PaddedBatch(next_larger, self.batch.lengths))
        moved = AMPLIFIED * self.largest_difference(after, self.ordinary())
        return moved if tolerance < moved < MOST_AMPLIFIED else tolerance

    def with_last_steps_changed(self, vocabulary: int | None) -> PaddedBatch:
        """The same batch with the last valid step of each row changed."""
        steps = self.batch.steps.copy()
        for row, length in enumerate(self.batch.lengths):
            last = steps[row, length - 1]
            steps[row, length - 1] = np.roll(last, 1) + 1 if vocabulary is None else (last + 1) % vocabulary
        return PaddedBatch(steps, self.batch.lengths)


def at_valid_steps(answer: ModelOutput, batch: PaddedBatch) -> NDArray[np.float32]:
    """The logits `[answers, classes]`, of a per-step model those at valid steps."""
    return answer.logits[step_mask(batch.lengths, batch.width)] if answer.logits.ndim == 3 else answer.logits


def is_finite(answer: ModelOutput, batch: PaddedBatch) -> bool:
    """Whether the logits are finite at all valid steps."""
    return bool(np.isfinite(at_valid_steps(answer, batch)).all())


def relative_difference(before: NDArray[Any], after: NDArray[Any]) -> float:
    """The largest difference of two arrays of any shape, divided by max(1, the largest value)."""
    if before.shape != after.shape:
        return float("inf")
    if before.size == 0:
        return 0.0
    if before.dtype.kind not in "fc":
        return float(np.any(before != after))
    with np.errstate(invalid="ignore", over="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        if same.all():
            return 0.0
        difference = np.abs(before[~same].astype(np.complex128) - after[~same])
    if not np.isfinite(difference).all():
        return float("inf")
    finite = np.abs(before[np.isfinite(before)])
    return float(difference.max() / max(1.0, float(finite.max(initial=0.0))))


_SCALES: Final = (1.0, 1000.0, 0.01)  # what the values of the other batches are multiplied by, in turn
_MAX_TRIED: Final = 12  # at most this many of the changed values are tried one by one
_MAX_NAMED: Final = 3


class Steadiness:
    """The answers to two rows and to one row alone, asked for again and again."""

    def __init__(self, subject: Subject, sizes: BatchSizes, tolerance: float) -> None:
        self._subject = subject
        self._tolerance = tolerance
        sampler, longest = Sampler(subject.steps, seed=0), sizes.longest
        self._others = [
            pad([sampler.sequence(length, scale=scale) for length in lengths], multiple=1)
            for scale in _SCALES
            for lengths in ([sizes.shortest], [sizes.width, longest], [longest] * 3, [sizes.wider, sizes.shortest])
        ]
        asked = [sampler.sequence(longest) for _ in range(2)]
        batch, alone = pad(asked, multiple=1), pad(asked[:1], multiple=1)
        self._restart()
        self._first = Baseline(asked, batch, subject.answer(batch))  # the one that `_why` explains
        self._firsts = [self._first]
        with suppress(RunError):
            self._firsts.append(Baseline(asked[:1], alone, subject.answer(alone)))

    def require(self) -> None:
        """Asks for the same answers after each of the other batches, and after all of them in a row."""
        for other in self._others:
            _run(self._subject, [other])
            self.ask_again()
        self._restart()
        _run(self._subject, self._others)
        self.ask_again()

    def ask_again(self) -> None:
        """Compares the answers with the first ones.

        Raises:
            UncheckableError: They differ; the message says what makes the model answer otherwise.
        """
        for first in self._firsts:
            self._first = first
            with suppress(RunError):
                if self._is_same(first.answer, self._answer()):
                    continue
            raise UncheckableError(self._why())

    def require_of(self, steps: Steps) -> None:
        """Runs one sequence alone twice, and compares the answers.

        Raises:
            UncheckableError: The answers differ.
        """
        alone = pad([steps], multiple=1)
        with suppress(RunError):
            first = Baseline([steps], alone, self._subject.answer(alone))
            if first.largest_difference(self._subject.answer(alone)) > self._tolerance:
                raise UncheckableError(_random(self._subject, alone))

    def _why(self) -> str:
        """What makes the answers differ: something random, or what a call changes."""
        state = self._subject.state
        if state is None:
            return _random(self._subject, self._first.batch)
        drifted, changed = state.now(), state.changed()
        if self._is_random():
            return _random(self._subject, self._first.batch)
        reaching = [name for name in changed[:_MAX_TRIED] if self._reaches(name, state, drifted)]
        return why_unsteady(self._subject, reaching or changed, [*self._others, self._first.batch])

    def _is_random(self) -> bool:
        """Whether the answers depend on torch's seed, or are never the same in the same state."""
        import torch  # a model with a state is a torch module

        first, again, anew = self._answer(restart=True), self._answer(), self._answer(restart=True)
        seeded = []
        for seed in (0, 0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                seeded.append(self._answer().logits.tobytes())
        depends = seeded[0] == seeded[1] != seeded[2]
        return depends or not (self._is_same(first, again) or self._is_same(first, anew))

    def _reaches(self, name: str, state: ModuleState, drifted: ModuleState) -> bool:
        """Whether the answer changes if only the value of `name` is restored, of all that the model has changed."""
        answers: list[ModelOutput] = []
        for names in ((), (name,)):
            drifted.restore()
            state.restore(names)
            try:
                answers.append(self._answer())
            except RunError:
                return True
        return not self._is_same(*answers)

    def _is_same(self, one: ModelOutput, other: ModelOutput) -> bool:
        return replace(self._first, answer=one).largest_difference(other) <= self._tolerance

    def _answer(self, *, restart: bool = False) -> ModelOutput:
        if restart:
            self._restart()
        return self._subject.answer(self._first.batch)

    def _restart(self) -> None:
        if self._subject.state is not None:
            self._subject.state.restore()


def why_unsteady(subject: Subject, names: Sequence[str], batches: Sequence[PaddedBatch]) -> str:
    """The message for a model that changes its own state: what it changes, on which line, and what to do."""
    location = None
    if names and subject.state is not None:
        location = subject.state.line_of_change(names, lambda: _run(subject, batches))
    shown = ", ".join(f"`{name}`" for name in names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
    at = "" if location is None else f" at {location} (`{location.source}`)"
    what = f"changes {shown} in evaluation mode" if names else "remembers the calls before, where that cannot be seen"
    return (
        f"not the same answer twice: the model {what}{at}, and later answers depend on it: change it in training only "
        "(`if self.training:`), or take it out of the answer"
    )


def _random(subject: Subject, batch: PaddedBatch) -> str:
    """The message for a model with random answers: its first random operation, and what to do."""

    def differs(one: Operation, two: Operation) -> bool:
        pairs = zip(one.outputs, two.outputs, strict=False)
        return any(not np.array_equal(mine, its, equal_nan=mine.dtype.kind == "f") for (_, mine), (_, its) in pairs)

    once, twice = (subject.record(batch).operations for _ in range(2))
    operation = next((one for one, two in zip(once, twice, strict=False) if differs(one, two)), None)
    at = "" if operation is None else f" at {operation.location or operation.operator}"
    if operation is not None and operation.location is not None:
        at += f" (`{operation.location.source}`)"
    return (
        f"not the same answer twice: something random runs in evaluation mode{at} (for example F.dropout without "
        "training=self.training)"
    )


def _run(subject: Subject, batches: Iterable[PaddedBatch]) -> None:
    for batch in batches:
        with suppress(RunError):
            subject.answer(batch)
